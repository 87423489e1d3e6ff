"""What is blocked: from where to where, and in which layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from lightning_mllm.errors import ConfigError
from lightning_mllm.types import Segment

_FORM = re.compile(
    r"\s*(?P<source>[^>\[\]]+?)\s*->\s*(?P<target>[^>\[\]]+?)\s*(?:\[(?P<heads>[\d,\s]+)\])?\s*"
)


@dataclass(frozen=True)
class Positions:
    """Token positions: a union of intersections of segments, as in "image object&image tiles+question".

    Attributes:
        terms: A position is among them if it is in all segments of any term.
    """

    terms: frozenset[frozenset[Segment]]

    @property
    def segments(self) -> frozenset[Segment]:
        """All that are named; one alone is these positions themselves."""
        return frozenset(segment for term in self.terms for segment in term)

    def __str__(self) -> str:
        known = list(Segment)  # written in this order, so that equal positions have one name
        terms = sorted(sorted(map(known.index, term)) for term in self.terms)
        return "+".join("&".join(known[number] for number in term) for term in terms)


@dataclass(frozen=True)
class Block:
    """The target's positions lose sight of the source's: no target row gets anything from a source key.

    Attributes:
        source: Keys that become invisible.
        target: Queries that lose sight of them.
        heads: Attention heads in which it is so; None for all.
    """

    source: Positions
    target: Positions
    heads: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> Block:
        """Read "image->question", or for some heads only "image->question[0,5]".

        A side may be composed of segments: `a+b` is what is in a or in b, `a&b` what is in both. `&` binds tighter.

        Raises:
            ConfigError: The text has another form, or a segment of this name does not exist.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"The block {text!r} can't be read. Write source->target, as in 'image->question', and behind it "
                "the heads if not all are meant: 'image->question[0,5]'."
            )
        heads = match["heads"] and tuple(
            sorted({int(head) for head in re.findall(r"\d+", match["heads"])})
        )
        return cls(
            _positions(match["source"], text), _positions(match["target"], text), heads or None
        )

    def __str__(self) -> str:
        heads = "" if self.heads is None else f"[{','.join(map(str, self.heads))}]"
        return f"{self.source}->{self.target}{heads}"


def _positions(side: str, text: str) -> Positions:
    terms = (
        frozenset(_segment(name, text) for name in term.split("&")) for term in side.split("+")
    )
    return Positions(frozenset(terms))


def _segment(name: str, text: str) -> Segment:
    name = " ".join(name.split())
    if not name:
        raise ConfigError(
            f"The block {text!r} can't be read: + (either) and & (both) each stand between two segments, as in "
            "'image object&image tiles->question'."
        )
    try:
        return Segment(name.lower())
    except ValueError:
        known = [str(segment) for segment in Segment]
        nearest = get_close_matches(name.lower(), known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(
            f"The block {text!r} names {name!r}, which is no segment.{hint} There are: {', '.join(known)}."
        ) from None
