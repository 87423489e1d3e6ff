"""Finds the sample of a split that needs most room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.types import IGNORE_INDEX, Sample

_MOST = 10_000  # samples that are looked at
_ENCODED = 4  # of them, those with most pictures and characters


@dataclass(frozen=True)
class LongestSample:
    """The size of the sample with most tokens.

    Attributes:
        tokens: Number of tokens, visual ones included.
        answer_tokens: How many tokens are trained on.
        images: Number of pictures.
        looked_at: Number of samples that were compared: of a large dataset not all are.
    """

    tokens: int
    answer_tokens: int
    images: int
    looked_at: int


def find_longest_sample(samples: Sequence[Sample], collator: Collator) -> LongestSample:
    """Return the size of the longest sample, found by pictures and characters, then encoded.

    Args:
        samples: The samples of a split; not empty.
        collator: Encodes them.
    """
    places = range(0, len(samples), -(-len(samples) // _MOST))
    ranked = sorted(places, key=lambda place: _size_of(samples[place]), reverse=True)
    found = []
    for place in ranked[:_ENCODED]:
        batch = collator([(0, samples[place])])
        trained = int((batch.labels != IGNORE_INDEX).sum())
        found.append((batch.input_ids.shape[1], trained, batch.image_counts[0]))
    return LongestSample(*max(found), looked_at=len(places))


def _size_of(sample: Sample) -> tuple[int, int]:
    characters = sum(len(turn.text) for turn in sample.conversation)
    return len(sample.images), characters + len(sample.label or "")
