"""Token positions as text: unions of intersections of segments, "image object&image tiles+last"."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from lightning_mllm.batches import TokenSpans
from lightning_mllm.errors import ConfigError, DataError, did_you_mean
from lightning_mllm.types import Segment


@dataclass(frozen=True)
class TokenPositions:
    """Token positions: a union of intersections of segments.

    For example "image object&image tiles+question".

    Attributes:
        terms: A position is among them if it is in all segments of any term.
    """

    terms: frozenset[frozenset[Segment]]

    @classmethod
    def parse(cls, text: str, whole: str) -> TokenPositions:
        """Read positions.

        Args:
            text: They themselves; `a+b` is what is in a or in b, `a&b` what is in both. `&` binds
                tighter.
            whole: What they are a part of, as messages begin: "The block 'image->last'".

        Raises:
            ConfigError: The text has another form, or names a segment that does not exist.
        """
        terms = []
        for term in text.split("+"):
            terms.append(frozenset(_parse_segment(name, whole) for name in term.split("&")))
        return cls(frozenset(terms))

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


def mask_positions(spans: TokenSpans, wanted: TokenPositions) -> Tensor:
    """Return the mask of positions, (batch, sequence).

    Raises:
        DataError: The batch was collated without one of their segments.
    """
    if lacking := wanted.segments.difference(spans.masks):
        raise DataError(
            f"The batch does not say where {str(min(lacking))!r} is; it has "
            f"{', '.join(spans.masks)}. Collate it with this segment, or name others."
        )
    terms = []
    for term in wanted.terms:
        terms.append(torch.stack([spans[segment] for segment in term]).all(dim=0))
    return torch.stack(terms).any(dim=0)


def _parse_segment(name: str, whole: str) -> Segment:
    name = " ".join(name.split())
    if not name:
        raise ConfigError(
            f"{whole} can't be read: + (either) and & (both) each stand between two segments, as "
            "in 'image object&image tiles'."
        )
    try:
        return Segment(name.lower())
    except ValueError:
        known = [str(segment) for segment in Segment]
        raise ConfigError(
            f"{whole} names {name!r}, which is not a segment. There are: "
            f"{', '.join(known)}.{did_you_mean(name.lower(), known)}"
        ) from None
