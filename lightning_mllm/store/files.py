"""Writes result files whole or not at all: a reader never meets half a table, whoever else writes the same one."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning_mllm.errors import DataError


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> Path:
    """Write a CSV file with a header and make its folder; None and NaN become empty cells."""
    with _replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([None if _is_nan(cell) else cell for cell in row] for row in rows)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file and make its folder; NaN becomes null, since JSON has none."""
    return write_text(path, json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write a text file and make its folder."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file and make its folder."""
    with _replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        DataError: The file holds something else, e.g. because it was cut off or edited.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise DataError(f"{path} can't be read as JSON: {error}. Restore it, or delete what it belongs to.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a JSON object. Delete what it belongs to.")
    return content


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a file of this process alone, which takes the place of `path` when it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid4().hex[:8]}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _without_nan(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_nan(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_nan(item) for item in node]
    return None if _is_nan(node) else node
