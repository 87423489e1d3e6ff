"""Writes result files whole or not at all: a reader never meets half a table."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> Path:
    """Write a CSV file with a header and make its folder; None and NaN become empty cells."""
    temporary = _temporary(path)
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([None if _is_nan(cell) else cell for cell in row] for row in rows)
    os.replace(temporary, path)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file and make its folder; NaN becomes null, since JSON has none."""
    temporary = _temporary(path)
    temporary.write_text(json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".part")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _without_nan(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_nan(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_without_nan(item) for item in node]
    return None if _is_nan(node) else node
