"""Images sorted into one folder per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.datasets.folder_samples import (
    FolderListing,
    FolderSamples,
    check_inside_root,
    list_subfolders,
)
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import (
    SPLITS,
    Split,
    check_split_fractions,
    find_val_fraction,
    stratified_split,
)
from lightning_mllm.data.loading.stored import Column
from lightning_mllm.errors import DataError

_MISNAMED = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}


class ImageFolder(MLLMDataModule):
    """Image classification from folders: `root/train/<class>/<file>`, or `root/<class>/<file>`.

    With split folders, `train` and `test` are needed; without `val`, a seeded stratified part of
    `train` takes its place. Without split folders, the images are split by `val_fraction` and
    `test_fraction`. Files of equal bytes go to the same split.

    Args:
        root: Folder that holds split folders or class folders.
        val_fraction: Fraction of the images that make up the validation split, unless there is a
            folder `val`; by default 0.1, but about 5,000 images at most.
        test_fraction: Fraction of the images that make up the test split, if there are no split
            folders.
        metadata: CSV file with further fields of each picture, as text: a column `file_name` has
            its path below the root, and every other column is a field, which probes can read
            (`targets` and `numbers` of ProbeEachEpoch).
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    def __init__(
        self,
        *,
        root: str,
        val_fraction: float | None = None,
        test_fraction: float = 0.1,
        metadata: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_split_fractions(val_fraction, test_fraction)
        self.root = Path(root)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.metadata = None if metadata is None else Path(metadata)
        self._listed: dict[Path, FolderSamples] = {}  # training and validation may be in one
        self._parts: dict[Split, NDArray[np.int64]] = {}  # of the seeded split

    def load(self, split: Split) -> FolderSamples:
        """Return the samples of a split; ids are paths relative to the root.

        Raises:
            DataError: A folder is missing, misnamed, empty or nested, or a link leads out of the
                root.
        """
        if not self.root.is_dir():
            found = "is a file" if self.root.exists() else "does not exist"
            raise DataError(
                f"The image folder {self.root} {found}; set `root` to a folder with one folder per "
                "class."
            )
        named = [name for name in SPLITS if (self.root / name).is_dir()]
        if not named:
            return self._draw_part(split, self.root, self.test_fraction)
        self._check_split_folders(named)
        if split == "test" or "val" in named:
            return self._list_classes(self._find_split_folder(split))
        return self._draw_part(split, self._find_split_folder("train"), 0)

    def _draw_part(self, split: Split, folder: Path, test_fraction: float) -> FolderSamples:
        """Return a split that is drawn from a folder; copies stay together."""
        samples = self._list_classes(folder)
        parts = self._parts
        if not parts:
            fraction = find_val_fraction(self.val_fraction, len(samples), str(folder))
            groups = samples.group_copies()
            self.further_files = samples.files  # also those of other splits
            drawn = stratified_split(groups, fraction, test_fraction, self.seed)
            for name, indices in drawn.items():
                parts[name] = np.sort(np.array(indices, np.int64))
        self._parts = {} if self.bad_rows.will_raise else parts
        return samples.select(parts[split])

    def _find_split_folder(self, split: Split) -> Path:
        """Return the folder of a split, and refuse one that is missing or links elsewhere."""
        folder = self.root / split
        if not folder.is_dir():
            present = sorted(path.name for path in self.root.iterdir() if path.is_dir())
            raise DataError(
                f"The split folder {folder} is missing; beside it are {', '.join(present)}. Make "
                f"it, or put all class folders directly into {self.root} to have them split by "
                "val_fraction and test_fraction."
            )
        check_inside_root(folder, self.root)
        return folder

    def _check_split_folders(self, named: list[Split]) -> None:
        """Refuse folders beside the split folders."""
        others = [folder for folder in list_subfolders(self.root) if folder.name not in named]
        for folder in others:
            meant = _MISNAMED.get(folder.name.lower())
            if meant:
                raise DataError(
                    f"{folder} looks like a split, but is not named {meant!r}. Rename it, or move "
                    "it away."
                )
        if others:
            raise DataError(
                f"{self.root} has both split folders ({', '.join(named)}) and others, e.g. "
                f"{others[0].name!r}. Move these away, or, if they are classes, the split folders."
            )

    def _list_classes(self, folder: Path) -> FolderSamples:
        """Return the images of a folder, which is listed once unless files are refused."""
        samples = self._listed.get(folder)
        if samples is None:
            samples = FolderListing(self.root, self.bad_rows, self.metadata).list_classes(folder)
            if not self.bad_rows.will_raise:
                self._listed[folder] = samples
        self.bad_rows.settle()
        return samples

    def describe_source(self, splits: Sequence[Split]) -> dict[str, str] | None:
        """Return which files the folders of splits have; None if they can't be used."""
        known = len(self.bad_rows)
        try:
            named = [name for name in SPLITS if (self.root / name).is_dir()]
            folders = [self.root]
            if named:
                needed = {split for split in splits if split in named} | {"train"}
                folders = [self.root / name for name in sorted(needed)]
            source = {"root": str(self.root.resolve())}
            for folder in folders:
                self.bad_rows.split = folder.name if named else "train"
                source[str(folder)] = self._list_classes(folder).digest()
        except (DataError, OSError):  # `load` says why
            return None
        return source if len(self.bad_rows) == known else None

    def restore(self, split: Split, columns: Mapping[str, Column]) -> FolderSamples:
        """Return the samples that have these columns."""
        return FolderSamples(self.root, columns, self.metadata)
