"""The TSV files of CrisisMMD, whose tweets have quotation marks that quote nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.data.datasets.rows import FileRow, read_file_rows
from lightning_mllm.data.loading.bad_rows import BadRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotationColumns:
    """The columns of a file that are read.

    Attributes:
        label: Column of the label.
        image: Column of the image's path.
        agrees_with: Column that must have the same label, if any.
        confidence: Column of the annotators' confidence, if any; an empty cell counts as 0.
    """

    label: str
    image: str
    agrees_with: str | None
    confidence: str | None


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its annotation.

    Attributes:
        id: The id of the image, which rows may repeat.
        tweet: The id of its tweet, which may have more images.
        image: Path of the image file.
        label: The label as it is in the file.
        agrees: Whether the column that must agree has the same label; True without one.
        confidence: The annotators' confidence from 0 to 1; 1 without a column.
    """

    id: str
    tweet: str
    image: Path
    label: str
    agrees: bool
    confidence: float


def read_annotations(
    file: Path, root: Path, columns: AnnotationColumns, bad_rows: BadRows
) -> list[AnnotatedImage]:
    """Return the images of a file; rows that repeat one are merged.

    Args:
        file: TSV file with a header.
        root: Folder that image paths are relative to, resolved.
        columns: The columns that are read.
        bad_rows: Collects rows that can't be used.

    Raises:
        DataError: The file or a column is missing, or a row is malformed or contradicts an earlier
            one.
    """
    header, *rows = read_file_rows(file, way_out="Correct `root`, or the path")
    names = header.text.split("\t")
    needed = ["tweet_id", "image_id", columns.label, columns.image]
    needed += [name for name in (columns.agrees_with, columns.confidence) if name is not None]
    header.check_columns(names, needed, "Name one of these")
    images: dict[str, AnnotatedImage] = {}
    numbers: dict[str, int] = {}
    repeated = 0
    for row in rows:
        with bad_rows.catch():
            image = _read_row(row, names, root, columns)
            if images.setdefault(image.id, image) != image:
                found = f"the image {image.id!r} is in row {numbers[image.id]} with another"
                raise row.error(f"{found} annotation. Remove one of the rows", "id")
            repeated += image.id in numbers
            numbers.setdefault(image.id, row.number)
    bad_rows.settle()
    if repeated:
        logger.warning("%d rows of %s repeat an earlier one: merged", repeated, file)
    return list(images.values())


def _read_row(
    row: FileRow, names: list[str], root: Path, columns: AnnotationColumns
) -> AnnotatedImage:
    cells = _split_cells(row, names)
    agrees = columns.agrees_with is None or cells[columns.agrees_with] == cells[columns.label]
    confidence = 1.0
    image = row.find_image(root, cells[columns.image])
    if columns.confidence is not None:
        confidence = _parse_number(row, columns.confidence, cells[columns.confidence])
    return AnnotatedImage(
        id=cells["image_id"],
        tweet=cells["tweet_id"],
        image=image,
        label=cells[columns.label],
        agrees=agrees,
        confidence=confidence,
    )


def _split_cells(row: FileRow, names: list[str]) -> dict[str, str]:
    """Return column -> cell; empty cells after the last column do no harm."""
    cells = [cell.strip() for cell in row.text.split("\t")]
    if len(cells) < len(names) or any(cells[len(names) :]):
        raise row.error(
            f"{len(cells)} cells, but the header has {len(names)}. Look for a tab or a line break "
            "in the tweet's text"
        )
    return dict(zip(names, cells, strict=False))


def _parse_number(row: FileRow, column: str, text: str) -> float:
    try:
        return float(text or 0)
    except ValueError as error:
        problem = f"{text!r} in the column {column!r} is not a number. Correct it"
        raise row.error(problem) from error
