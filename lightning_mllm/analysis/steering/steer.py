"""Where a vector is read, and at which positions it is added: "image object->last"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.batches import TokenSpans
from lightning_mllm.errors import ConfigError, DataError, did_you_mean
from lightning_mllm.types import Segment


@dataclass(frozen=True)
class Steer:
    """Where a vector comes from and where it goes.

    Attributes:
        read_at: Segments over whose tokens states were averaged, joined by "+".
        at: Segments to whose tokens the vector is added, joined by "+".
    """

    read_at: str
    at: str

    @classmethod
    def parse(cls, text: str) -> Steer:
        """Read "image object", or "image object->last" for a vector that is added elsewhere.

        Several segments are joined by "+", as in "question+last".

        Raises:
            ConfigError: A segment does not exist.
        """
        read_at, arrow, at = text.partition("->")
        read_at = name_steer_segments(read_at)
        return cls(read_at, name_steer_segments(at) if arrow else read_at)

    def __str__(self) -> str:
        return self.at if self.read_at == self.at else f"{self.read_at}->{self.at}"


def name_steer_segments(text: str) -> str:
    """Return the one way to write segments that are joined by "+"."""
    return "+".join(parse_steer_segments(text))


def parse_steer_segments(text: str) -> tuple[Segment, ...]:
    """Return the segments of a text such as "question+last", in the order of `Segment`.

    Raises:
        ConfigError: One does not exist.
    """
    named: set[Segment] = set()
    for name in text.split("+"):
        clean = " ".join(name.lower().split())
        if clean not in {*Segment}:
            raise ConfigError(
                f"{text!r} names {clean!r}, which is not a segment. There are: "
                f"{', '.join(Segment)}; several are joined by +.{did_you_mean(clean, Segment)}"
            )
        named.add(Segment(clean))
    return tuple(segment for segment in Segment if segment in named)


def find_steer_positions(spans: TokenSpans, text: str) -> Tensor:
    """Return which positions are in any of the segments, (batch, sequence) bool.

    Raises:
        DataError: The batch was collated without one of them.
    """
    segments = parse_steer_segments(text)
    if lacking := [segment for segment in segments if segment not in spans.masks]:
        raise DataError(
            f"The batch does not say where {str(lacking[0])!r} is; it has "
            f"{', '.join(spans.masks)}. Collate it with this segment, or name others."
        )
    return torch.stack([spans[segment] for segment in segments]).any(dim=0)
