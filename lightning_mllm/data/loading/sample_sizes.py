"""What the sampler knows of samples, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.store.manifest import manifest_digest


@dataclass(frozen=True)
class SampleSize:
    """What is known of a sample before its pictures are opened.

    Attributes:
        id: The id of the sample.
        images: How many images it has.
        characters: How many characters its texts have; 0 if it has a label.
    """

    id: str
    images: int
    characters: int


@dataclass(frozen=True)
class SampleSizes:
    """What is known of samples before their pictures are opened.

    Attributes:
        images: How many images each has, shape (samples,).
        characters: How many characters its texts have; 0 with a label.
        digest: A short hash of ids, images and characters, in their order.
    """

    images: NDArray[np.int32]
    characters: NDArray[np.int64]
    digest: str

    @classmethod
    def of(cls, sizes: Sequence[SampleSize]) -> SampleSizes:
        """Return the sizes of some samples."""
        images = np.array([size.images for size in sizes], np.int32)
        characters = np.array([size.characters for size in sizes], np.int64)
        return cls.of_columns([size.id for size in sizes], images, characters)

    @classmethod
    def of_columns(
        cls, ids: Sequence[str], images: NDArray[np.int32], characters: NDArray[np.int64]
    ) -> SampleSizes:
        """Return sizes by columns; of the ids only a hash is kept."""

        def write_lines() -> Iterator[str]:
            between = ""
            for name, count, length in zip(ids, images.tolist(), characters.tolist(), strict=True):
                yield f"{between}{name}\t{count}\t{length}"
                between = "\n"

        return cls(images, characters, manifest_digest(write_lines()))

    def __len__(self) -> int:
        """Return how many samples these are."""
        return len(self.images)
