"""Rows of text files that list images or annotations, and what can be wrong with a row."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lightning_mllm.data.loading.bad_rows import IMAGE_PATH
from lightning_mllm.errors import DataError


class ImageRoot:
    """A folder that image paths are relative to, and may not leave.

    Args:
        path: The folder, as a resolved path.

    Attributes:
        absent: Paths of images that were not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.absent: list[str] = []
        self._folders: dict[str, str] = {}  # folder of an image -> resolved
        self._start = str(path).rstrip("/") + "/"

    def resolve(self, path: str) -> tuple[Path, bool]:
        """Return the resolved path of an image, and whether there is such a file.

        The folders of images are resolved once: to resolve every path takes as long as to read it.
        """
        folder, name = os.path.split(os.path.join(self._start, path))
        if name not in ("", ".", ".."):
            if folder not in self._folders:
                self._folders[folder] = os.path.realpath(folder).rstrip("/")
            image = f"{self._folders[folder]}/{name}"
            with suppress(OSError, ValueError):
                if stat.S_ISREG(os.lstat(image).st_mode):
                    return Path(image), True
        resolved = (self.path / path).resolve()
        is_there = resolved.is_file()
        if not is_there:
            self.absent.append(str(resolved))
        return resolved, is_there

    def holds(self, path: Path) -> bool:
        """Return whether a resolved path is inside."""
        return f"{path}/".startswith(self._start)


@dataclass(frozen=True)
class FileRow:
    """One row of a file; rows count from 1, a header included, as editors show them.

    Attributes:
        file: The file that the row is from.
        number: The number of the row.
        text: The text of the row, without the line break.
    """

    file: Path
    number: int
    text: str = ""

    def error(self, problem: str, kind: str = "row", field: str = "") -> DataError:
        """Return the error that names file, row and field; `kind` is what it is counted by."""
        where = f", field {field!r}" if field else ""
        return DataError(f"{self.file}, row {self.number}{where}: {problem}.", kind)

    def find_image(
        self,
        root: Path | ImageRoot,
        path: str,
        kind: str = IMAGE_PATH,
        field: str = "",
        way_out: str = "Correct the row, or fetch the file again",
    ) -> Path:
        """Return the image file at a path below a folder.

        Args:
            root: The folder, as a resolved path.
            path: The path relative to it.
            kind: The kind of the errors.
            field: The field of the row that has the path.
            way_out: What to do if there is no such file.

        Raises:
            DataError: The path leads out of the folder, or there is no such file.
        """
        folder = root if isinstance(root, ImageRoot) else ImageRoot(root)
        image, is_there = folder.resolve(path)
        if not folder.holds(image):
            problem = f"the image {path!r} leads out of {folder.path}. Give a path inside"
            raise self.error(problem, kind, field)
        if not is_there:
            raise self.error(f"the image {image} does not exist. {way_out}", kind, field)
        return image

    def check_columns(self, columns: Sequence[str], needed: Sequence[str], way_out: str) -> None:
        """Refuse a header without a column that is needed.

        Args:
            columns: The columns that the header has.
            needed: The columns that it must have.
            way_out: What to do if one is missing.

        Raises:
            DataError: One is missing.
        """
        for name in needed:
            if name not in columns:
                found = ", ".join(columns) or "none"
                raise self.error(f"there is no column {name!r}; the columns are {found}. {way_out}")


@contextmanager
def open_rows_file(
    file: Path, newline: str | None = None, way_out: str = "Correct the path"
) -> Iterator[TextIO]:
    """Open a UTF-8 text file for reading.

    Args:
        file: The file.
        newline: How line breaks are read, see `open`.
        way_out: What to do if the file is missing.

    Raises:
        DataError: The file is missing, or what is read of it is not UTF-8 text.
    """
    if not file.is_file():
        raise DataError(f"The file {file} does not exist. {way_out}.")
    try:
        with file.open(newline=newline, encoding="utf-8-sig") as text:
            yield text
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}). Save it again as UTF-8.") from error


def read_file_rows(file: Path, way_out: str) -> list[FileRow]:
    """Return the rows of a UTF-8 text file that are not blank.

    Args:
        file: The file.
        way_out: What to do if the file is missing.

    Raises:
        DataError: The file is missing, empty or not UTF-8 text.
    """
    with open_rows_file(file, way_out=way_out) as text:
        lines = text.read().split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(FileRow(file, number, line))
    if not rows:
        raise DataError(f"{file} is empty. Fetch it again.")
    return rows
