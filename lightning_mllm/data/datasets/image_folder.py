"""Images sorted into one folder per class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, IMAGE_PATH
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.duplicates import find_equal_files
from lightning_mllm.data.loading.splits import Split, check_fractions, stratified_split
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

IMAGE_SUFFIXES = frozenset(
    {
        *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
        *(".tif", ".tiff", ".webp"),
    }
)
OTHER_SUFFIXES = frozenset(  # of pictures that are not read: they are refused, not passed over
    {
        *(".avif", ".avifs", ".dcm", ".dds", ".dib", ".heic", ".heif", ".hif", ".icns", ".ico", ".j2c", ".j2k"),
        *(".jp2", ".jpc", ".jpf", ".jpx", ".jxl", ".pcx", ".psd", ".qoi", ".sgi", ".svg", ".tga", ".xbm", ".xpm"),
    }
)
_SPLIT_FOLDERS: tuple[Split, ...] = ("train", "val", "test")
_MISNAMED = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}

logger = logging.getLogger(__name__)


class ImageFolder(MLLMDataModule):
    """Image classification from folders: `root/train/<class>/<file>`, or `root/<class>/<file>`.

    With split folders, `train` and `test` are needed; without `val`, a seeded stratified part of `train` takes its
    place. Without split folders, the images are split by `val_fraction` and `test_fraction`. Files of equal bytes come
    into one split.

    Args:
        root: The folder.
        val_fraction: Fraction of the validation split, unless there is a folder `val`.
        test_fraction: Fraction of the test split, where there are no split folders.
        **kwargs: Options of `MLLMDataModule`.
    """

    def __init__(self, *, root: str, val_fraction: float = 0.1, test_fraction: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_fractions(val_fraction, test_fraction)
        self.root = Path(root)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._parts: dict[Split, list[Path]] = {}  # of the seeded split

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split; ids are paths relative to the root.

        Raises:
            DataError: A folder is missing, misnamed, empty or nested, or a link leads out of the root.
        """
        if not self.root.is_dir():
            found = "is a file" if self.root.exists() else "does not exist"
            raise DataError(f"The image folder {self.root} {found}; set `root` to a folder with one folder per class.")
        named = [name for name in _SPLIT_FOLDERS if (self.root / name).is_dir()]
        if not named:
            return self._samples(self._part(split, self.root, self.test_fraction))
        self._check_split_folders(named)
        if split == "test" or "val" in named:
            return self._samples(_all(self._classes(self._split_folder(split))))
        return self._samples(self._part(split, self._split_folder("train"), 0))

    def _part(self, split: Split, folder: Path, test_fraction: float) -> list[Path]:
        """Return what the seeded split of a folder gives to a split; copies go with the first of them."""
        if self._parts:
            return self._parts[split]
        classes = self._classes(folder)
        copies = {file: group for group in find_equal_files(_all(classes)) for file in group}
        groups = {
            name: [group for file in files if (group := copies.get(file, [file]))[0] == file]
            for name, files in classes.items()
        }
        parts = stratified_split(groups, self.val_fraction, test_fraction, self.seed)
        self._parts = {} if self.bad_rows.will_raise else parts
        return parts[split]

    def _split_folder(self, split: Split) -> Path:
        folder = self.root / split
        if not folder.is_dir():
            raise DataError(
                f"The split folder {folder} is missing; beside it are "
                f"{', '.join(sorted(p.name for p in self.root.iterdir() if p.is_dir()))}. Make it, or put all class "
                f"folders directly into {self.root} to have them split by val_fraction and test_fraction."
            )
        self._check_inside(folder)
        return folder

    def _check_split_folders(self, named: list[Split]) -> None:
        others = [folder for folder in _subfolders(self.root) if folder.name not in named]
        for folder in others:
            if meant := _MISNAMED.get(folder.name.lower()):
                raise DataError(f"{folder} looks like a split, but is not named {meant!r}. Rename it, or move it away.")
        if others:
            raise DataError(
                f"{self.root} has both split folders ({', '.join(named)}) and others, e.g. {others[0].name!r}. "
                "Move these away, or, if they are classes, the split folders."
            )

    def _classes(self, folder: Path) -> dict[str, list[Path]]:
        """Return class -> files, both sorted by name."""
        folders = _subfolders(folder)
        if not folders:
            raise DataError(f"{folder} has no class folders; one folder of images per class was expected.")
        ignored: list[Path] = [path for path in folder.iterdir() if not path.is_dir()]
        classes = {path.name: self._files(path, ignored) for path in folders}
        if ignored:
            logger.warning("%d files in %s are no images and ignored (e.g. %s)", len(ignored), folder, min(ignored))
        return classes

    def _files(self, folder: Path, ignored: list[Path]) -> list[Path]:
        files = []
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                raise DataError(
                    f"The class folder {folder} has a folder in it ({path.name!r}); images must lie directly in "
                    "their class folder. Move them up, or make it a class of its own."
                )
            with self.bad_rows.catch():
                if self._is_image(path):
                    files.append(path)
                else:
                    ignored.append(path)
        if not files:
            self.bad_rows.settle()
            raise DataError(f"The class folder {folder} has no images in it. Put some there, or remove the folder.")
        return files

    def _is_image(self, path: Path) -> bool:
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            return False
        if suffix in OTHER_SUFFIXES:
            raise DataError(
                f"{path}: is a picture in the format {suffix[1:].upper()}, which is not read. Convert it, or move it "
                "away.",
                IMAGE_FILE,
            )
        if suffix in IMAGE_SUFFIXES:
            self._check_inside(path)
        return suffix in IMAGE_SUFFIXES

    def _check_inside(self, path: Path) -> None:
        if path.is_symlink() or path.parent.is_symlink():
            target = path.resolve()
            if not target.is_relative_to(self.root.resolve()):
                problem = f"{path} is a link out of {self.root} (to {target}). Copy it into the folder."
                raise DataError(problem, IMAGE_PATH)

    def _samples(self, files: Sequence[Path]) -> Sequence[Sample]:
        self.bad_rows.settle()
        return [
            Sample(id=path.relative_to(self.root).as_posix(), images=[path], label=path.parent.name)
            for path in sorted(files)
        ]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _all(classes: dict[str, list[Path]]) -> list[Path]:
    return [path for files in classes.values() for path in files]
