"""What is blocked: from which positions to which, and in which heads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lightning_mllm.analysis.core.positions import TokenPositions
from lightning_mllm.errors import ConfigError

_FORM = re.compile(
    r"\s*(?P<source>[^>\[\]]+?)\s*->\s*(?P<target>[^>\[\]]+?)\s*(?:\[(?P<heads>[\d.,\s]+)\])?\s*"
)

_PLACE = 2  # numbers in "3.2": layer and head


@dataclass(frozen=True)
class Block:
    """Queries at the target positions cannot attend to keys at the source positions.

    Attributes:
        source: Positions of the keys that are hidden.
        target: Positions of the queries from which they are hidden.
        heads: Attention heads in which they are hidden, in every layer; None for all.
        places: Single heads, (layer, head), in which they are hidden; None for those of `heads`.
    """

    source: TokenPositions
    target: TokenPositions
    heads: tuple[int, ...] | None = None
    places: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def parse(cls, text: str) -> Block:
        """Read "image->question", or for some heads only "image->question[0,5]".

        "image->question[3.2,4.0]" is head 2 of layer 3 and head 0 of layer 4 alone.

        A side may be composed of segments: `a+b` is what is in a or in b, `a&b` what is in both.
        `&` binds tighter.

        Raises:
            ConfigError: The text has another form, or names a segment that does not exist.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"The block {text!r} can't be read. Write source->target, as in "
                "'image->question', and after it the heads if not all are meant: "
                "'image->question[0,5]', or '[3.2,4.0]' for those of single layers."
            )
        sides = (match[side] for side in ("source", "target"))
        source, target = (TokenPositions.parse(side, f"The block {text!r}") for side in sides)
        return cls(source, target, *_parse_heads(match["heads"], text))

    @property
    def in_all_heads(self) -> bool:
        """Whether it holds for all heads."""
        return self.heads is None and self.places is None

    def __str__(self) -> str:
        names = [*map(str, self.heads or ()), *(f"{k}.{head}" for k, head in self.places or ())]
        heads = "" if self.in_all_heads else f"[{','.join(names)}]"
        return f"{self.source}->{self.target}{heads}"


def _parse_heads(
    written: str | None, text: str
) -> tuple[tuple[int, ...] | None, tuple[tuple[int, int], ...] | None]:
    """Return heads of every layer, or heads of single layers; None for what is not written."""
    names = [name.strip() for name in written.split(",")] if written else []
    names = [name for name in names if name]
    if all(name.isdecimal() for name in names):
        return tuple(sorted({int(name) for name in names})) or None, None
    parts = [name.split(".") for name in names]
    if not all(len(each) == _PLACE and "".join(each).isdecimal() and all(each) for each in parts):
        raise ConfigError(
            f"The block {text!r} can't be read: heads are numbers, [0,5], in every layer, or "
            "layer.head, [3.2,4.0], in single layers; write one of both."
        )
    return None, tuple(sorted({(int(layer), int(head)) for layer, head in parts}))
