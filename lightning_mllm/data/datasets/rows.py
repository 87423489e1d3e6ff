"""Text files that list images row by row, and what can be wrong with a row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.data.loading.bad_rows import IMAGE_PATH
from lightning_mllm.errors import DataError


@dataclass(frozen=True)
class FileRow:
    """One row of a file; rows count from 1, a header included, as editors show them.

    Attributes:
        file: The file.
        number: The row's number.
        text: Its text, without the line break.
    """

    file: Path
    number: int
    text: str

    def error(self, problem: str, kind: str = "row") -> DataError:
        """Return the error that names file and row; all of a kind are counted together."""
        return DataError(f"{self.file}, row {self.number}: {problem}.", kind)

    def image(self, root: Path, path: str) -> Path:
        """Return an image file below a folder.

        Args:
            root: The folder, resolved.
            path: Relative to it.

        Raises:
            DataError: The path leads out of the folder, or there is no such file.
        """
        image = (root / path).resolve()
        if not image.is_relative_to(root):
            raise self.error(f"the image {path!r} leads out of {root}. Give a path inside", IMAGE_PATH)
        if not image.is_file():
            problem = f"the image {image} does not exist. Correct the row, or fetch the file again"
            raise self.error(problem, IMAGE_PATH)
        return image


def read_rows(file: Path) -> list[FileRow]:
    """Return the rows of a UTF-8 text file that are not blank.

    Raises:
        DataError: The file is missing, empty or no UTF-8 text.
    """
    if not file.is_file():
        raise DataError(f"The file {file} does not exist. Correct `root`, or the path.")
    try:
        text = file.read_text(encoding="utf-8-sig")  # translates line breaks
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}). Save it again as UTF-8.") from error
    rows = [FileRow(file, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise DataError(f"{file} is empty. Fetch it again.")
    return rows
