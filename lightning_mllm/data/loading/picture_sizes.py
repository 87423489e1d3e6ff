"""The sizes of the pictures that samples show, and how much room these take, as arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.images.geometry import Size
from lightning_mllm.errors import DataError


@dataclass(frozen=True)
class PictureSizes:
    """The sizes of the pictures that samples show.

    Attributes:
        count: How many samples these are.
        owners: The sample of each picture, ascending, shape (pictures,).
        sizes: Width and height of each picture, shape (pictures, 2).
    """

    count: int
    owners: NDArray[np.int64]
    sizes: NDArray[np.int32]

    @classmethod
    def join(
        cls,
        count: int,
        files: tuple[NDArray[np.int64], NDArray[np.int32]],
        inner: tuple[NDArray[np.int64], NDArray[np.int32]],
    ) -> PictureSizes:
        """Return the owners and sizes of files, and of pictures that are not files, together."""
        owners = np.concatenate([files[0], inner[0]])
        order = np.argsort(owners, kind="stable")
        return cls(count, owners[order], np.concatenate([files[1], inner[1]])[order])

    def select(self, kept: NDArray[np.bool_]) -> PictureSizes:
        """Return the pictures of some of the samples, whose numbers stay."""
        chosen = kept[self.owners]
        return PictureSizes(self.count, self.owners[chosen], self.sizes[chosen])

    def of_sample(self, index: int) -> list[Size]:
        """Return the sizes of the pictures of a sample."""
        start, end = np.searchsorted(self.owners, [index, index + 1])
        return [(int(width), int(height)) for width, height in self.sizes[start:end]]

    def measure(
        self, measure: Callable[[Size], int]
    ) -> tuple[NDArray[np.int64], dict[int, DataError]]:
        """Measure the pictures; those of one size are alike.

        Returns:
            The measure of each picture, and the samples of whose pictures one can't be measured,
            with the reason.
        """
        packed = self.sizes[:, 0].astype(np.int64) << 32 | self.sizes[:, 1]
        unique, inverse = np.unique(packed, return_inverse=True)
        measures = np.zeros(len(unique), np.int64)
        errors: dict[int, DataError] = {}
        for number, size in enumerate(unique.tolist()):
            try:
                measures[number] = measure((size >> 32, size & 0xFFFFFFFF))
            except DataError as error:
                errors[number] = error
        failed: dict[int, DataError] = {}
        if errors:
            for place in np.flatnonzero(np.isin(inverse, list(errors))).tolist():
                failed.setdefault(int(self.owners[place]), errors[int(inverse[place])])
        return measures[inverse], failed

    def add_up(self, measures: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sum of a measure of the pictures for each sample, shape (samples,)."""
        sums = np.bincount(self.owners, weights=measures, minlength=self.count)
        return sums.astype(np.int64)
