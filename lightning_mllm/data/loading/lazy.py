"""Samples that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import overload

from lightning_mllm.types import Sample


class LazySamples(Sequence[Sample]):
    """Samples that are made when they are asked for: a hundred thousand of them take no memory.

    Args:
        count: How many samples there are.
        make: Makes the sample of an index, the same each time; worker processes get a copy of it.
    """

    def __init__(self, count: int, make: Callable[[int], Sample]) -> None:
        self._indices, self._make = range(count), make

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Make the sample of an index, or those of a slice."""
        chosen = self._indices[index]
        if isinstance(chosen, int):
            return self._make(chosen)
        return [self._make(each) for each in chosen]


class LazySubset(LazySamples):
    """Some of the samples of a sequence.

    Args:
        samples: The sequence that samples are taken from.
        indices: Which samples are taken, in order.
    """

    def __init__(self, samples: Sequence[Sample], indices: Sequence[int]) -> None:
        super().__init__(len(indices), partial(_pick, samples, indices))


def _pick(samples: Sequence[Sample], indices: Sequence[int], number: int) -> Sample:
    return samples[indices[number]]
