"""What is blocked: from which positions to which, and in which heads."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lightning_mllm.analysis.core.positions import TokenPositions
from lightning_mllm.errors import ConfigError

_FORM = re.compile(
    r"\s*(?P<source>[^>\[\]]+?)\s*->\s*(?P<target>[^>\[\]]+?)\s*(?:\[(?P<heads>[\d,\s]+)\])?\s*"
)


@dataclass(frozen=True)
class Block:
    """Queries at the target positions cannot attend to keys at the source positions.

    Attributes:
        source: Positions of the keys that are hidden.
        target: Positions of the queries from which they are hidden.
        heads: Attention heads in which they are hidden; None for all.
    """

    source: TokenPositions
    target: TokenPositions
    heads: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> Block:
        """Read "image->question", or for some heads only "image->question[0,5]".

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
                "'image->question[0,5]'."
            )
        sides = (match[side] for side in ("source", "target"))
        source, target = (TokenPositions.parse(side, f"The block {text!r}") for side in sides)
        heads = {int(head) for head in re.findall(r"\d+", match["heads"] or "")}
        return cls(source, target, tuple(sorted(heads)) or None)

    def __str__(self) -> str:
        heads = "" if self.heads is None else f"[{','.join(map(str, self.heads))}]"
        return f"{self.source}->{self.target}{heads}"
