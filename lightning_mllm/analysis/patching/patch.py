"""What is patched: at which positions, and which of a layer's states."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from lightning_mllm.analysis.core.positions import TokenPositions
from lightning_mllm.errors import ConfigError

SWAPPED = "swapped"  # the positions at which the two prompts have different tokens

_FORM = re.compile(
    r"\s*(?P<at>[^@\[\]]+?)\s*@\s*(?P<kind>[a-z]+)\s*(?:\[(?P<heads>[^\[\]]*)\])?\s*"
)
_HEAD = re.compile(r"\s*(\d+)\s*\.\s*(\d+)\s*")


class PatchKind(StrEnum):
    """Which of a layer's states are patched."""

    RESIDUAL = "residual"  # what enters the layer
    ATTENTION = "attention"  # what its attention returns
    FFN = "ffn"  # what its FFN returns
    HEAD = "head"  # what single heads hand to the attention's output projection


@dataclass(frozen=True)
class Patch:
    """States of one run that take the place of another run's.

    Attributes:
        positions: Where; None for the positions at which the two prompts have different tokens.
        kind: Which states.
        heads: Layer and head of each patched head; empty for other kinds.
    """

    positions: TokenPositions | None
    kind: PatchKind
    heads: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Patch:
        """Read "image object @ residual", "last @ attention", or "last @ head[3.2,4.0]".

        Positions may be composed of segments: `a+b` is what is in a or in b, `a&b` what is in both.
        "swapped" stands for the positions at which the two prompts have different tokens.

        Raises:
            ConfigError: The text has another form, or names a segment that does not exist.
        """
        match = _FORM.fullmatch(text)
        kinds = [str(kind) for kind in PatchKind]
        if match is None or match["kind"] not in kinds:
            raise ConfigError(
                f"The patch {text!r} can't be read. Write positions @ states, as in 'image object "
                f"@ residual'; states can be {', '.join(kinds)}."
            )
        kind = PatchKind(match["kind"])
        heads = _parse_heads(match["heads"], text) if match["heads"] is not None else frozenset()
        if bool(heads) != (kind is PatchKind.HEAD):
            raise ConfigError(
                f"The patch {text!r} can't be read: heads, as layer.head, stand behind the word "
                "head and nowhere else. Write e.g. 'last @ head[3.2,4.0]'."
            )
        at = " ".join(match["at"].split()).lower()
        if at == SWAPPED:
            return cls(None, kind, heads)
        return cls(TokenPositions.parse(at, f"The patch {text!r}"), kind, heads)

    @property
    def at(self) -> str:
        """The positions as text."""
        return SWAPPED if self.positions is None else str(self.positions)

    def heads_of(self, layer: int) -> list[int]:
        """Return the heads that are patched in a layer."""
        return sorted(head for its_layer, head in self.heads if its_layer == layer)

    def __str__(self) -> str:
        listed = ",".join(f"{layer}.{head}" for layer, head in sorted(self.heads))
        return f"{self.at} @ {self.kind}" + (f"[{listed}]" if listed else "")


def _parse_heads(text: str, patch: str) -> frozenset[tuple[int, int]]:
    heads = set()
    for each in text.split(","):
        match = _HEAD.fullmatch(each)
        if match is None:
            raise ConfigError(
                f"The patch {patch!r} can't be read: {each.strip()!r} is not layer.head. Write "
                "e.g. 'last @ head[3.2,4.0]'."
            )
        heads.add((int(match[1]), int(match[2])))
    return frozenset(heads)
