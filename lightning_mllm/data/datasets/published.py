"""The published size of a dataset, to be compared with what is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_mllm.data.datasets.folder_samples import FolderSamples
from lightning_mllm.data.datasets.image_folder import ImageFolder
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample


@dataclass(frozen=True)
class Published:
    """Counts as they were published or are quoted.

    Attributes:
        images: Split -> number of images. Without "val", the validation split is a part of the
            training images.
        classes: Split -> number of classes, where it is known.
        source: Where the numbers are from, and how far they can be trusted.
    """

    images: Mapping[Split, int]
    classes: Mapping[Split, int]
    source: str


class PublishedDataset:
    """A DataModule whose dataset has published counts.

    `lightning data check` compares them with what it finds.

    Attributes:
        published: The counts to compare with.
    """

    published: ClassVar[Published]

    def count_as_published(self, split: Split, samples: Sequence[Sample]) -> Counter[str]:
        """Return label -> number as `published` counts them; by default those of the samples."""
        return Counter(sample.label or "" for sample in samples)


class PublishedFolders(PublishedDataset, ImageFolder):
    """A dataset published as `train/<class>/<file>` and `test/<class>/<file>` alone."""

    def load(self, split: Split) -> FolderSamples:
        """Return the samples of a split; validation is a seeded, stratified part of `train`.

        Raises:
            DataError: A folder can't be used (see `ImageFolder`), or `train` or `test` is missing.
        """
        missing = [name for name in ("train", "test") if not (self.root / name).is_dir()]
        if missing and self.root.is_dir():
            raise DataError(
                f"{self.root} has no folder {missing[0]!r}; {type(self).__name__} is published as "
                "train/<class>/<file> and test/<class>/<file>. Set `root` to the folder that holds "
                "both."
            )
        return super().load(split)
