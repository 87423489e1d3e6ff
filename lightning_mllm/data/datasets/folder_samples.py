"""The images of class folders, listed once and kept as one array of paths."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, overload

import numpy as np

from lightning_mllm.data.datasets.sample_fields import (
    Fields,
    find_picture_fields,
    read_field_table,
)
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE, IMAGE_PATH, BadRows
from lightning_mllm.data.loading.equal_files import find_equal_files
from lightning_mllm.data.loading.splits import ItemGroups
from lightning_mllm.data.loading.stored import Column, StoredSamples
from lightning_mllm.data.loading.text_array import TextArray, TextArrayBuilder
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

logger = logging.getLogger(__name__)

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


class FolderSamples(StoredSamples):
    """Images of class folders; ids are paths relative to the root.

    Args:
        root: Folder that the paths are relative to.
        columns: `path` of each image below the root, whose folder is its class, and a number for
            its `class`.
        metadata: A CSV file with further fields of each image; None without.
    """

    ids_are_unique: ClassVar[bool] = True

    def __init__(
        self, root: Path, columns: Mapping[str, Column], metadata: Path | None = None
    ) -> None:
        source = {"root": str(root)}
        if metadata is not None:
            self._fields = read_field_table(metadata)
            source |= {"metadata": sha256(repr(self._fields).encode()).hexdigest()}
        super().__init__(columns, source)
        self._root, self._metadata = str(root), metadata

    def make(self, index: int) -> Sample:
        """Name an image and its class."""
        path: str = self.columns["path"][index]
        label = path.rsplit("/", 2)[-2]
        fields: Fields = {}
        if self._metadata is not None:
            fields = find_picture_fields(self._fields, path, self._metadata)
        image = Path(f"{self._root}/{path}")
        return Sample(id=path, images=[image], label=label, fields=fields)

    def find_examples(self) -> list[int]:
        """Return the indices of the first image of each class."""
        _, first = np.unique(self.columns["class"], return_index=True)
        examples: list[int] = first.tolist()
        return examples

    @property
    def files(self) -> Sequence[str]:
        """The full paths of the images."""
        paths = self.columns["path"]
        assert isinstance(paths, TextArray)  # `FolderListing` has it so
        return _FilePaths(self._root, paths)

    def group_copies(self) -> dict[str, ItemGroups]:
        """Return class -> groups of images of equal bytes, which go with the first of them."""
        groups = ItemGroups(find_equal_files(self.files))
        starts = self.find_examples()
        bounds = [*np.searchsorted(groups.first, starts).tolist(), len(groups)]
        names = [self.make(start).label or "" for start in starts]
        return {
            name: groups[slice(*ends)] for name, ends in zip(names, pairwise(bounds), strict=True)
        }


class _FilePaths(Sequence[str]):
    """The full paths of images, each made when it is asked for."""

    def __init__(self, root: str, paths: TextArray) -> None:
        self._root, self._paths = root, paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> _FilePaths: ...
    def __getitem__(self, index: int | slice) -> str | _FilePaths:
        if isinstance(index, slice):
            return _FilePaths(self._root, self._paths[index])
        return f"{self._root}/{self._paths[index]}"


class FolderListing:
    """Lists the images of class folders, sorted by class and name.

    Each folder is listed once, and no file is looked up on its own but links.

    Args:
        root: Folder that ids are relative to, and that no link may leave.
        bad_rows: Collects pictures in formats that are not read, and links out of the root.
        metadata: A CSV file with further fields of each image; None without.
    """

    def __init__(self, root: Path, bad_rows: BadRows, metadata: Path | None = None) -> None:
        self._root, self._bad_rows, self._metadata = root, bad_rows, metadata
        self._ignored = 0
        self._first_ignored: Path | None = None

    def list_classes(self, folder: Path) -> FolderSamples:
        """Return the images of the class folders in a folder, the root or one below it.

        Raises:
            DataError: There is no class folder, or a class folder has a folder in it, or no image.
        """
        folders = list_subfolders(folder)
        if not folders:
            raise DataError(
                f"{folder} has no class folders; one folder of images per class was expected."
            )
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir() and Path(entry.path) != self._metadata:
                    self._ignore(Path(entry.path))
        paths, numbers = TextArrayBuilder(), array("i")
        for number, path in enumerate(folders):
            below = path.relative_to(self._root).as_posix()
            for name in self._list_images(path):
                paths.append(f"{below}/{name}")
                numbers.append(number)
        if self._ignored:
            logger.warning(
                "%d files in %s are not images and are ignored (e.g. %s)",
                self._ignored,
                folder,
                self._first_ignored,
            )
        columns: dict[str, Column] = {"path": paths.build(), "class": np.array(numbers, np.int32)}
        return FolderSamples(self._root, columns, self._metadata)

    def _list_images(self, folder: Path) -> list[str]:
        """Return the names of the images of a class folder, sorted."""
        is_link = folder.is_symlink()
        images = []
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            if entry.is_dir():
                raise DataError(
                    f"The class folder {folder} has a folder in it ({entry.name!r}); images must "
                    "be directly in their class folder. Move them up, or make it a class of its "
                    "own."
                )
            with self._bad_rows.catch():
                if not _is_image(entry):
                    self._ignore(Path(entry.path))
                    continue
                if is_link or entry.is_symlink():
                    check_inside_root(Path(entry.path), self._root)
                images.append(entry.name)
        if not images:
            self._bad_rows.settle()
            raise DataError(
                f"The class folder {folder} has no images in it. Put some there, or remove the "
                "folder."
            )
        return images

    def _ignore(self, path: Path) -> None:
        self._ignored += 1
        self._first_ignored = min(path, self._first_ignored or path)


def list_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        names = [each.name for each in entries if each.is_dir() and not each.name.startswith(".")]
    return [folder / name for name in sorted(names)]


def check_inside_root(path: Path, root: Path) -> None:
    """Refuse a link that leads out of the root.

    Raises:
        DataError: It does.
    """
    if path.is_symlink() or path.parent.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(root.resolve()):
            raise DataError(
                f"{path} is a link out of {root} (to {target}). Copy it into the folder.",
                IMAGE_PATH,
            )


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a file is an image by its name, and refuse formats that are not read."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        return False
    if suffix in OTHER_SUFFIXES:
        raise DataError(
            f"{Path(entry.path)}: is a picture in the format {suffix[1:].upper()}, which is not "
            "read. Convert it, or move it away.",
            IMAGE_FILE,
        )
    return suffix in IMAGE_SUFFIXES
