"""The six tasks of the information-flow study as CSV files: their columns, and reading them.

The columns are those that "Cross-modal Information Flow in Multimodal Large Language Models"
(Zhang, Yadav, Han and Shutova, CVPR 2025) released, in their order.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from pathlib import Path

from lightning_mllm.data.datasets.rows import FileRow, open_rows_file
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


def _name_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of objects' names and ids."""
    return list(chain(*((f"{name} name", f"{name} id") for name in names)))


def box_columns_of_task_row(names: Sequence[str]) -> list[str]:
    """Return the columns of objects' boxes: width, height, left, top."""
    return list(chain(*((f"{name} w", f"{name} h", f"{name} x", f"{name} y") for name in names)))


_TWO_NAMES, _TWO_BOXES = _name_columns(TWO), box_columns_of_task_row(TWO)
_NAME, _BOX = _name_columns(CENTRAL), box_columns_of_task_row(CENTRAL)
_ATTRIBUTES = (
    "central object attributes",
    "central object question attribute",
    "all objects",
    "all objects attributes",
)
_STEPS = ("operation_1", "operation_2")
_COMPARED = (*START, *_TWO_NAMES, "question word", *_TYPES, *_PICTURE, *_TWO_BOXES)
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "ChooseAttr": (
        *START,
        *OPTIONS,
        *_NAME,
        *_ATTRIBUTES,
        *_TYPES,
        *_STEPS,
        *_PICTURE,
        *_BOX,
        "full answer",
    ),
    "ChooseCat": (*START, *OPTIONS, *_NAME, *_TYPES, *_PICTURE, *_BOX),
    "ChooseRel": (*START, *OPTIONS, *_TWO_NAMES, *_TYPES, *_PICTURE, *_TWO_BOXES),
    "CompareAttr": _COMPARED,
    "LogicalObj": _COMPARED,
    "QueryAttr": (*START, *_NAME, "question word", *_TYPES, *_PICTURE, *_BOX),
}
"""The header of each task's file."""


def write_task_rows(path: Path, task: str, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write rows, with the columns of a task in their order, into a file, and return it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS[task], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def objects_of_task_row(task: str) -> tuple[str, ...]:
    """Return what a task's columns call its objects."""
    return TWO if "object1 name" in COLUMNS[task] else CENTRAL


@dataclass(frozen=True)
class TaskRow:
    """A question of a task.

    Attributes:
        at: The row of the file, for messages.
        question_id: The id of the question; text, as ids have leading zeros.
        image_id: The file name of its picture without the suffix.
        question: The text of the question.
        answer: The answer, in lower case.
        options: What the question lets the model choose between; None in three of the tasks.
        size: Width and height of the picture.
        boxes: The boxes of the objects that are in the picture.
    """

    at: FileRow
    question_id: str
    image_id: str
    question: str
    answer: str
    options: Options | None
    size: tuple[int, int]
    boxes: tuple[Box, ...]


def find_task_of_rows(file: Path) -> str:
    """Return the task that a file's name ends with.

    An example is "GQA_val_correct_question_with_choose_ChooseAttr.csv".

    Raises:
        DataError: It is none of the six.
    """
    task = file.stem.split("_")[-1]
    if task not in COLUMNS:
        raise DataError(
            f"The file {file} must be named after its task, as in ..._ChooseAttr.csv, but {task!r} "
            f"is none of {', '.join(COLUMNS)}. Rename it."
        )
    return task


def read_task_rows(file: Path, bad_rows: BadRows | None = None) -> list[TaskRow]:
    """Return the questions of a task's file.

    Args:
        file: CSV file, named after its task.
        bad_rows: Collects what is wrong with rows, which the caller settles; without it, a bad row
            is an error.

    Raises:
        DataError: The file is missing, empty or not UTF-8 text, a column is missing, or a row is
            malformed; the message names file, row and column.
    """
    task = find_task_of_rows(file)
    bad = BadRows() if bad_rows is None else bad_rows
    rows = []
    try:
        for row, cells in _read_cells(task, file, bad):
            with bad.catch():
                rows.append(_parse_row(task, row, cells))
    except csv.Error as error:
        problem = f"{file} is not a CSV file that can be read ({error}). Fetch it again."
        raise DataError(problem) from error
    if bad_rows is None or not rows:
        bad.settle()
    if not rows:
        raise DataError(f"{file} has no questions. Fetch it again.")
    return rows


def _read_cells(task: str, file: Path, bad: BadRows) -> Iterator[tuple[FileRow, dict[str, str]]]:
    """Yield each row with its cells by column."""
    needed = [*START, "image_w", "image_h", *box_columns_of_task_row(objects_of_task_row(task))]
    if _has_options(task):
        needed += OPTIONS
    with open_rows_file(file, newline="") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        way_out = f"{task} needs it: name it so, or rename the file to its task"
        FileRow(file, 1).check_columns(header, needed, way_out)
        for cells in reader:
            row = FileRow(file, reader.line_num)
            if cells and len(cells) != len(header):
                found = f"{len(cells)} cells, but the header has {len(header)}"
                bad.add(row.error(f"{found}. Look for a comma or a quote", "cells"))
            elif cells:
                yield row, dict(zip(header, map(str.strip, cells), strict=True))


def _parse_row(task: str, row: FileRow, cells: Mapping[str, str]) -> TaskRow:
    """Return the question of a row, and refuse empty cells and wrong options."""
    empty = [name for name in START if not cells[name]]
    if empty:
        raise row.error(f"the column {empty[0]!r} is empty. Fill it in")
    options = None
    if _has_options(task):
        options = Options(cells[OPTIONS[0]], cells[OPTIONS[1]])
        if options.true != cells["answer"]:
            problem = f"the true option {options.true!r} is not the answer {cells['answer']!r}"
            raise row.error(f"{problem}. Correct one of them")
    width = int(_parse_number(row, "image_w", cells))
    height = int(_parse_number(row, "image_h", cells))
    boxes = []
    for name in objects_of_task_row(task):
        if any(cells[column] != ABSENT for column in box_columns_of_task_row([name])):
            boxes.append(_parse_box(row, name, cells))
    return TaskRow(
        at=row,
        question_id=cells["question_id"],
        image_id=cells["img_id"],
        question=cells["question"],
        answer=cells["answer"],
        options=options,
        size=(width, height),
        boxes=tuple(boxes),
    )


def _has_options(task: str) -> bool:
    return OPTIONS[0] in COLUMNS[task]


def _parse_box(row: FileRow, name: str, cells: Mapping[str, str]) -> Box:
    numbers = [_parse_number(row, column, cells) for column in box_columns_of_task_row([name])]
    width, height, left, top = numbers
    if min(width, height) < 0:
        raise row.error(f"the box of {name!r} is {width:g} x {height:g} pixels. Correct it")
    return Box(left, top, width, height)


def _parse_number(row: FileRow, column: str, cells: Mapping[str, str]) -> float:
    try:
        number = float(cells[column])
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        problem = f"{cells[column]!r} in the column {column!r} is not a number. Correct it"
        raise row.error(problem)
    return number
