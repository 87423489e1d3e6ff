"""Further columns of a dataset that go along with each sample: what probes can read."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_mllm.data.datasets.rows import FileRow, open_rows_file
from lightning_mllm.errors import DataError

Fields = dict[str, str | float]

_FILE = "file_name"  # the column of a table that says which picture a row is about


def read_sample_fields(content: Mapping[str, Any], names: Sequence[str], row: FileRow) -> Fields:
    """Return some fields of a row.

    Args:
        content: The row.
        names: The fields, all of which it must have.
        row: Where the row is, for messages.

    Raises:
        DataError: A field is missing or empty, or is neither text nor a number.
    """
    fields: Fields = {}
    for name in names:
        value = content.get(name)
        if value is None or value == "":
            problem = "is missing or empty, but `fields` names it. Fill it, or take it out of there"
            raise row.error(problem, "fields", name)
        if not isinstance(value, str | int | float):
            problem = f"is a {type(value).__name__}; a field of a sample is text or a number"
            raise row.error(problem, "fields", name)
        fields[name] = value
    return fields


def read_field_table(file: Path) -> dict[str, Fields]:
    """Return path of a picture -> its fields, from a CSV file with a column `file_name`.

    Raises:
        DataError: The file is missing, has no such column, names a picture twice, or has an empty
            cell.
    """
    found: dict[str, Fields] = {}
    with open_rows_file(file, newline="") as text:
        reader = csv.DictReader(text)
        columns = list(reader.fieldnames or ())
        way_out = f"Name the pictures in a column {_FILE!r}, as paths below the root"
        FileRow(file, 1).check_columns(columns, [_FILE], way_out)
        names = [name for name in columns if name != _FILE]
        for number, content in enumerate(reader, 2):
            row = FileRow(file, number)
            path = Path(content[_FILE] or "").as_posix()
            if path in found:
                raise row.error(f"{path!r} has a row already. Remove one", "fields", _FILE)
            found[path] = read_sample_fields(content, names, row)
    return found


def find_picture_fields(table: Mapping[str, Fields], path: str, file: Path) -> Fields:
    """Return the fields of a picture.

    Raises:
        DataError: The table has no row of it.
    """
    if path not in table:
        raise DataError(
            f"{file} has no row of {path!r}. Add one with this `{_FILE}`, or remove the picture.",
            "fields",
        )
    return table[path]
