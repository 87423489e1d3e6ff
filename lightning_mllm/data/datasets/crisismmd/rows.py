"""The TSV files of CrisisMMD, whose tweets have quotes that quote nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.data.datasets.rows import FileRow, read_rows
from lightning_mllm.data.loading.bad_rows import BadRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its annotation.

    Attributes:
        id: Image id.
        tweet: Id of its tweet, which may have more images.
        image: File.
        label: As it is in the file.
        agrees: Whether the column that must agree has the same label; True without one.
        confidence: Of the annotators, from 0 to 1; 1 without a column.
    """

    id: str
    tweet: str
    image: Path
    label: str
    agrees: bool
    confidence: float


def read_entries(
    file: Path,
    root: Path,
    bad_rows: BadRows,
    *,
    label: str,
    image: str,
    agrees_with: str | None,
    confidence: str | None,
) -> list[AnnotatedImage]:
    """Return the images of a file; rows that repeat one are merged.

    Args:
        file: TSV file with a header.
        root: Folder that image paths are relative to, resolved.
        bad_rows: Gathers rows that can't be used.
        label: Column of the label.
        image: Column of the image's path.
        agrees_with: Column that must have the same label.
        confidence: Column of the confidence; an empty cell counts as 0.

    Raises:
        DataError: The file is missing, a column too, or a row is malformed or contradicts an earlier one.
    """
    header, *rows = read_rows(file)
    columns = header.text.split("\t")
    wanted = [name for name in ("tweet_id", "image_id", label, image, agrees_with, confidence) if name is not None]
    absent = [name for name in wanted if name not in columns]
    if absent:
        raise header.error(f"there is no column {absent[0]!r}; the columns are {', '.join(columns)}. Name one of these")
    entries: dict[str, AnnotatedImage] = {}
    numbers: dict[str, int] = {}

    def read(row: FileRow) -> AnnotatedImage:
        cells = _cells(row, columns)
        return AnnotatedImage(
            id=cells["image_id"],
            tweet=cells["tweet_id"],
            image=row.image(root, cells[image]),
            label=cells[label],
            agrees=agrees_with is None or cells[agrees_with] == cells[label],
            confidence=1.0 if confidence is None else _number(row, confidence, cells[confidence]),
        )

    repeated = 0
    for row in rows:
        with bad_rows.catch():
            entry = read(row)
            earlier = entries.setdefault(entry.id, entry)
            if earlier != entry:
                found = f"the image {entry.id!r} is in row {numbers[entry.id]} with another annotation"
                raise row.error(f"{found}. Remove one of the rows", "id")
            repeated += entry.id in numbers
            numbers.setdefault(entry.id, row.number)
    bad_rows.settle()
    if repeated:
        logger.warning("%d rows of %s repeat an earlier one: merged", repeated, file)
    return list(entries.values())


def _cells(row: FileRow, columns: list[str]) -> dict[str, str]:
    cells = [cell.strip() for cell in row.text.split("\t")]
    if len(cells) < len(columns) or any(cells[len(columns) :]):  # empty cells behind the last column do no harm
        raise row.error(
            f"{len(cells)} cells, but the header has {len(columns)}. Look for a tab or a line break in the tweet's text"
        )
    return dict(zip(columns, cells, strict=False))


def _number(row: FileRow, column: str, text: str) -> float:
    try:
        return float(text or 0)
    except ValueError as error:
        raise row.error(f"{text!r} in the column {column!r} is no number. Correct it") from error
