"""Images sorted into one folder per class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, IMAGE_PATH
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.duplicates import find_duplicate_files
from lightning_mllm.data.loading.splits import (
    SPLITS,
    Split,
    check_split_fractions,
    stratified_split,
)
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

IMAGE_SUFFIXES = frozenset(
    {
        *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"),
        *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    }
)
# of pictures that are not read: they are refused, not passed over
OTHER_SUFFIXES = frozenset(
    {
        *(".avif", ".avifs", ".dcm", ".dds", ".dib", ".heic", ".heif", ".hif", ".icns", ".ico"),
        *(".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx", ".jxl", ".pcx", ".psd", ".qoi", ".sgi"),
        *(".svg", ".tga", ".xbm", ".xpm"),
    }
)
_MISNAMED = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}

logger = logging.getLogger(__name__)


class ImageFolder(MLLMDataModule):
    """Image classification from folders: `root/train/<class>/<file>`, or `root/<class>/<file>`.

    With split folders, `train` and `test` are needed; without `val`, a seeded stratified part of
    `train` takes its place. Without split folders, the images are split by `val_fraction` and
    `test_fraction`. Files of equal bytes go to the same split.

    Args:
        root: Folder that holds split folders or class folders.
        val_fraction: Fraction of the images that make up the validation split, unless there is a
            folder `val`.
        test_fraction: Fraction of the images that make up the test split, if there are no split
            folders.
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    def __init__(
        self, *, root: str, val_fraction: float = 0.1, test_fraction: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_split_fractions(val_fraction, test_fraction)
        self.root = Path(root)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._parts: dict[Split, list[Path]] = {}  # of the seeded split

    def load(self, split: Split) -> Sequence[Sample]:
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
            return self._make_samples(self._draw_part(split, self.root, self.test_fraction))
        self._check_split_folders(named)
        if split == "test" or "val" in named:
            classes = self._list_classes(self._find_split_folder(split))
            return self._make_samples(list(chain(*classes.values())))
        return self._make_samples(self._draw_part(split, self._find_split_folder("train"), 0))

    def _draw_part(self, split: Split, folder: Path, test_fraction: float) -> list[Path]:
        """Return the files of a split that is drawn from a folder; copies stay together."""
        if self._parts:
            return self._parts[split]
        classes = self._list_classes(folder)
        copies: dict[Path, list[Path]] = {}
        for equal in find_duplicate_files(chain(*classes.values())):
            copies.update(dict.fromkeys(equal, equal))
        groups: dict[str, list[list[Path]]] = {}
        for name, files in classes.items():
            groups[name] = []
            for file in files:
                equal = copies.get(file, [file])
                if equal[0] == file:  # copies go with the first of them
                    groups[name].append(equal)
        parts = stratified_split(groups, self.val_fraction, test_fraction, self.seed)
        self._parts = {} if self.bad_rows.will_raise else parts
        return parts[split]

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
        self._check_inside(folder)
        return folder

    def _check_split_folders(self, named: list[Split]) -> None:
        """Refuse folders beside the split folders."""
        others = [folder for folder in _list_subfolders(self.root) if folder.name not in named]
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

    def _list_classes(self, folder: Path) -> dict[str, list[Path]]:
        """Return class -> files, both sorted by name."""
        folders = _list_subfolders(folder)
        if not folders:
            raise DataError(
                f"{folder} has no class folders; one folder of images per class was expected."
            )
        ignored: list[Path] = [path for path in folder.iterdir() if not path.is_dir()]
        classes = {path.name: self._list_images(path, ignored) for path in folders}
        if ignored:
            logger.warning(
                "%d files in %s are not images and are ignored (e.g. %s)",
                len(ignored),
                folder,
                min(ignored),
            )
        return classes

    def _list_images(self, folder: Path, ignored: list[Path]) -> list[Path]:
        """Return the images of a class folder; other files are added to `ignored`."""
        files: list[Path] = []
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                raise DataError(
                    f"The class folder {folder} has a folder in it ({path.name!r}); images must be "
                    "directly in their class folder. Move them up, or make it a class of its own."
                )
            with self.bad_rows.catch():
                (files if self._is_image(path) else ignored).append(path)
        if not files:
            self.bad_rows.settle()
            raise DataError(
                f"The class folder {folder} has no images in it. Put some there, or remove the "
                "folder."
            )
        return files

    def _is_image(self, path: Path) -> bool:
        """Return whether a file is an image by its name, and refuse formats that are not read."""
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            return False
        if suffix in OTHER_SUFFIXES:
            raise DataError(
                f"{path}: is a picture in the format {suffix[1:].upper()}, which is not read. "
                "Convert it, or move it away.",
                IMAGE_FILE,
            )
        if suffix in IMAGE_SUFFIXES:
            self._check_inside(path)
        return suffix in IMAGE_SUFFIXES

    def _check_inside(self, path: Path) -> None:
        """Refuse a link that leads out of the root."""
        if path.is_symlink() or path.parent.is_symlink():
            target = path.resolve()
            if not target.is_relative_to(self.root.resolve()):
                raise DataError(
                    f"{path} is a link out of {self.root} (to {target}). Copy it into the folder.",
                    IMAGE_PATH,
                )

    def _make_samples(self, files: Sequence[Path]) -> Sequence[Sample]:
        """Return one sample per file, sorted by path, once bad files were reported."""
        self.bad_rows.settle()
        samples = []
        for path in sorted(files):
            name = path.relative_to(self.root).as_posix()
            samples.append(Sample(id=name, images=[path], label=path.parent.name))
        return samples


def _list_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, hidden ones left out."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found)
