"""What is blocked: from which positions to which, and in which heads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain

from lightning_mllm.errors import ConfigError, did_you_mean
from lightning_mllm.types import Segment

_FORM = re.compile(
    r"\s*(?P<source>[^>\[\]]+?)\s*->\s*(?P<target>[^>\[\]]+?)\s*(?:\[(?P<heads>[\d.,\s]+)\])?\s*"
)

_PLACE = 2  # numbers in "3.2": layer and head


@dataclass(frozen=True)
class BlockPositions:
    """Token positions: a union of intersections of segments.

    For example "image object&image tiles+question".

    Attributes:
        terms: A position is among them if it is in all segments of any term.
    """

    terms: frozenset[frozenset[Segment]]

    @property
    def segments(self) -> frozenset[Segment]:
        """All that are named; one alone is these positions themselves."""
        return frozenset(chain.from_iterable(self.terms))

    def __str__(self) -> str:
        known = list(Segment)  # written in this order, so that equal positions have one name
        written = []
        for term in sorted(sorted(map(known.index, term)) for term in self.terms):
            written.append("&".join(known[number] for number in term))
        return "+".join(written)


@dataclass(frozen=True)
class Block:
    """Queries at the target positions cannot attend to keys at the source positions.

    Attributes:
        source: Positions of the keys that are hidden.
        target: Positions of the queries from which they are hidden.
        heads: Attention heads in which they are hidden, in every layer; None for all.
        places: Single heads, (layer, head), in which they are hidden; None for those of `heads`.
    """

    source: BlockPositions
    target: BlockPositions
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
        source, target = (_parse_positions(match[side], text) for side in ("source", "target"))
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


def _parse_positions(side: str, text: str) -> BlockPositions:
    terms = []
    for term in side.split("+"):
        terms.append(frozenset(_parse_segment(name, text) for name in term.split("&")))
    return BlockPositions(frozenset(terms))


def _parse_segment(name: str, text: str) -> Segment:
    name = " ".join(name.split())
    if not name:
        raise ConfigError(
            f"The block {text!r} can't be read: + (either) and & (both) each stand between two "
            "segments, as in 'image object&image tiles->question'."
        )
    try:
        return Segment(name.lower())
    except ValueError:
        known = [str(segment) for segment in Segment]
        raise ConfigError(
            f"The block {text!r} names {name!r}, which is not a segment. There are: "
            f"{', '.join(known)}.{did_you_mean(name.lower(), known)}"
        ) from None
