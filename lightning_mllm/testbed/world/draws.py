"""Random choices that are equal in every process, on every platform, with any library version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.store.seeds import python_random

T = TypeVar("T")


class Draw:
    """A stream of random choices, seeded by words and numbers.

    Python guarantees the sequence of `random.random` for a seed, but not how `shuffle` or `choice`
    use it, so these are written out here.

    Args:
        key: Words and numbers that name the stream, e.g. ("scene", seed, split, index).
    """

    def __init__(self, *key: str | int) -> None:
        self._random = python_random(*key).random

    def below(self, count: int) -> int:
        """Return an integer from 0 to `count` - 1."""
        return int(self._random() * count)

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def happens(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random() < probability

    def one(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return the options in random order."""
        shuffled = list(options)
        for end in range(len(shuffled) - 1, 0, -1):
            other = self.below(end + 1)
            shuffled[end], shuffled[other] = shuffled[other], shuffled[end]
        return shuffled

    def noise(self, height: int, width: int, amplitude: int) -> NDArray[np.int64]:
        """Return (height, width, 3) integers from -`amplitude` to `amplitude`.

        NumPy guarantees that the streams of `RandomState` never change.
        """
        state = np.random.RandomState(self.below(2**31))
        return state.randint(-amplitude, amplitude + 1, (height, width, 3))
