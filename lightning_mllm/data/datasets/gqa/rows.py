"""The six tasks of the information-flow study as CSV files: their columns, and reading them.

The columns are those that "Cross-modal Information Flow in Multimodal Large Language Models" (Zhang, Yadav, Han and
Shutova, CVPR 2025) released, in their order.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from lightning_mllm.data.datasets.rows import FileRow
from lightning_mllm.data.loading.bad_rows import BadRows
from lightning_mllm.errors import DataError
from lightning_mllm.types import Box, Options

ABSENT = "-"  # id and box of an object that is not in the picture
CENTRAL = ("central object",)
TWO = ("object1", "object2")
START = ("question_id", "img_id", "question", "answer")
OPTIONS = ("true option", "false option")

_TYPES = ("type_detailed", "type_semantic", "type_structural", "operations")
_PICTURE = ("captions", "image_w", "image_h")


def named(names: Sequence[str]) -> list[str]:
    """Return the columns of objects' names and ids."""
    return [f"{name} {field}" for name in names for field in ("name", "id")]


def boxes(names: Sequence[str]) -> list[str]:
    """Return the columns of objects' boxes."""
    return [f"{name} {field}" for name in names for field in "whxy"]


_COMPARED = (*START, *named(TWO), "question word", *_TYPES, *_PICTURE, *boxes(TWO))
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "ChooseAttr": (
        *(*START, *OPTIONS, *named(CENTRAL)),
        *("central object attributes", "central object question attribute", "all objects", "all objects attributes"),
        *(*_TYPES, "operation_1", "operation_2", *_PICTURE, *boxes(CENTRAL), "full answer"),
    ),
    "ChooseCat": (*START, *OPTIONS, *named(CENTRAL), *_TYPES, *_PICTURE, *boxes(CENTRAL)),
    "ChooseRel": (*START, *OPTIONS, *named(TWO), *_TYPES, *_PICTURE, *boxes(TWO)),
    "CompareAttr": _COMPARED,
    "LogicalObj": _COMPARED,
    "QueryAttr": (*START, *named(CENTRAL), "question word", *_TYPES, *_PICTURE, *boxes(CENTRAL)),
}
"""The header of each task's file."""


def write_rows(path: Path, task: str, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write rows, with the columns of a task in their order, into a file, and return it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS[task], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def objects_of(task: str) -> tuple[str, ...]:
    """Return what a task's columns call its objects."""
    return TWO if "object1 name" in COLUMNS[task] else CENTRAL


@dataclass(frozen=True)
class TaskRow:
    """A question of a task.

    Attributes:
        at: Where it is.
        question_id: Text: ids have leading zeros.
        image_id: Its picture's file name without its end.
        question: What is asked.
        answer: The answer, in lower case.
        options: What the question lets choose between, in the three tasks that do.
        size: (width, height) of the picture.
        boxes: Of the objects that are in the picture.
    """

    at: FileRow
    question_id: str
    image_id: str
    question: str
    answer: str
    options: Options | None
    size: tuple[int, int]
    boxes: tuple[Box, ...]


def task_of(file: Path) -> str:
    """Return the task that a file's name ends with, as in "GQA_val_correct_question_with_choose_ChooseAttr.csv".

    Raises:
        DataError: It is none of the six.
    """
    task = file.stem.split("_")[-1]
    if task not in COLUMNS:
        raise DataError(
            f"The file {file} must be called after its task, as in ..._ChooseAttr.csv, but {task!r} is none of "
            f"{', '.join(COLUMNS)}. Rename it."
        )
    return task


def read_task(file: Path, bad_rows: BadRows | None = None) -> list[TaskRow]:
    """Return the questions of a task's file.

    Args:
        file: The file.
        bad_rows: Gathers what is wrong with rows, for the caller to settle; without it, they are an error.

    Raises:
        DataError: The file is missing, empty or no UTF-8 text, a column is missing, or a row is malformed; the message
            names file, row and column.
    """
    task = task_of(file)
    if not file.is_file():
        raise DataError(f"The task file {file} does not exist. Correct the path.")
    bad = BadRows() if bad_rows is None else bad_rows
    rows = []
    try:
        for row, cells in _cells(task, file, bad):
            with bad.catch():
                rows.append(_parsed(task, row, cells))
    except csv.Error as error:
        raise DataError(f"{file} is no CSV that can be read ({error}). Fetch it again.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}). Save it again as UTF-8.") from error
    if bad_rows is None or not rows:
        bad.settle()
    if not rows:
        raise DataError(f"{file} has no questions. Fetch it again.")
    return rows


def _cells(task: str, file: Path, bad: BadRows) -> Iterator[tuple[FileRow, dict[str, str]]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        names = objects_of(task)
        needed = [*START, *(OPTIONS if OPTIONS[0] in COLUMNS[task] else ()), "image_w", "image_h", *boxes(names)]
        if absent := [name for name in needed if name not in header]:
            raise FileRow(file, 1, "").error(
                f"there is no column {absent[0]!r}, which {task} needs; the columns are {', '.join(header) or 'none'}. "
                "Name it so, or rename the file to its task"
            )
        for cells in reader:
            row = FileRow(file, reader.line_num, "")
            if cells and len(cells) != len(header):
                found = f"{len(cells)} cells, but the header has {len(header)}"
                bad.add(row.error(f"{found}. Look for a comma or a quote", "cells"))
            elif cells:
                yield row, dict(zip(header, map(str.strip, cells), strict=True))


def _parsed(task: str, row: FileRow, cells: Mapping[str, str]) -> TaskRow:
    if empty := [name for name in START if not cells[name]]:
        raise row.error(f"the column {empty[0]!r} is empty. Fill it in")
    options = Options(cells[OPTIONS[0]], cells[OPTIONS[1]]) if OPTIONS[0] in COLUMNS[task] else None
    if options and options.true != cells["answer"]:
        raise row.error(f"the true option {options.true!r} is not the answer {cells['answer']!r}. Correct one of them")
    width, height = (int(_number(row, name, cells[name])) for name in ("image_w", "image_h"))
    return TaskRow(
        at=row,
        question_id=cells["question_id"],
        image_id=cells["img_id"],
        question=cells["question"],
        answer=cells["answer"],
        options=options,
        size=(width, height),
        boxes=tuple(_box(row, name, cells) for name in objects_of(task) if not _is_absent(name, cells)),
    )


def _is_absent(name: str, cells: Mapping[str, str]) -> bool:
    return all(cells[column] == ABSENT for column in boxes([name]))


def _box(row: FileRow, name: str, cells: Mapping[str, str]) -> Box:
    width, height, left, top = (_number(row, column, cells[column]) for column in boxes([name]))
    if min(width, height) < 0:
        raise row.error(f"the box of {name!r} is {width:g} x {height:g} pixels. Correct it")
    return Box(left, top, width, height)


def _number(row: FileRow, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise row.error(f"{text!r} in the column {column!r} is no number. Correct it")
    return number
