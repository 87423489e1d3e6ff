"""The files of a run, read for the page: curves, scores, tables, figures, settings."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from lightning_mllm.errors import ConfigError, did_you_mean
from lightning_mllm.store.files import read_json
from lightning_mllm.tracking.secrets import mask_secrets

_CURVES = ("metrics.csv",)
_ROW_FILES = ("rows*.csv",)  # of analyses: thousands of single measurements
_STATES = ("status.json", "environment.json")


@dataclass(frozen=True)
class ReportTable:
    """A CSV file of a run.

    Attributes:
        name: Path of the file in the run, without the suffix.
        columns: Header of the file.
        rows: First rows of the file.
        count: How many rows the file has.
    """

    name: str
    columns: list[str]
    rows: list[list[str]]
    count: int


def check_run_folder(run: Path) -> None:
    """Refuse what is not the folder of a run.

    Raises:
        ConfigError: There is no such folder, or it holds neither numbers nor settings of a run.
    """
    if not run.is_dir():
        nearby = [each.name for each in run.parent.glob("*/")] if run.parent.is_dir() else []
        raise ConfigError(
            f"There is no folder {run}. Name the folder of a run, e.g. runs/<name>."
            + did_you_mean(run.name, nearby)
        )
    expected = ("config.yaml", "metrics.csv", "evaluation", "analysis", "predict")
    if not any((run / name).exists() for name in expected):
        raise ConfigError(
            f"{run} is not the folder of a run: it has none of {', '.join(expected)}. Expected "
            "e.g. runs/<name>."
        )


def read_report_curves(run: Path) -> dict[str, list[tuple[float, float]]]:
    """Return metric -> (step, value) of `metrics.csv`, for all that have a number."""
    path = run / "metrics.csv"
    curves: dict[str, dict[float, float]] = {}
    for row in _read_rows(path) if path.is_file() else ():
        for metric, cell in row.items():
            if not cell or metric in ("step", "epoch") or not (step := row.get("step")):
                continue
            value = float(cell)
            if isfinite(value):  # a run that diverged has a curve up to there
                curves.setdefault(metric, {})[float(step)] = value
    return {metric: sorted(points.items()) for metric, points in curves.items()}


def read_report_scores(run: Path) -> ReportTable:
    """Return the scores of all evaluations as one table, a row per scorer."""
    rows: list[dict[str, str]] = []
    for path in sorted((run / "evaluation").glob("*/scores.json"), key=_natural_order):
        for scorer, scores in (read_json(path).get("scorers") or {}).items():
            row = {"evaluation": path.parent.name, "scorer": scorer}
            for name, value in scores.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    ends = scores.get(f"{name}_interval_95")
                    row[name] = _format(value) + ("" if ends is None else _format_ends(ends))
            rows.append(row)
    columns = [*dict.fromkeys(name for row in rows for name in row)]
    cells = [[row.get(column, "") for column in columns] for row in rows]
    return ReportTable("scores", columns, cells, len(cells))


def read_report_tables(run: Path, most_rows: int | None) -> list[ReportTable]:
    """Return the CSV files of a run, without curves and the rows of single measurements.

    Args:
        run: Folder of the run.
        most_rows: How many rows of each are read; None for all.
    """
    paths = [path for path in run.glob("*.csv") if path.name not in _CURVES]
    for room in ("evaluation", "analysis", "predict"):
        paths += (run / room).rglob("*.csv")
    tables = []
    for path in sorted(paths, key=_natural_order):
        if not any(path.match(pattern) for pattern in _ROW_FILES):
            tables.append(_read_table(run, path, most_rows))
    return tables


def read_report_figures(run: Path) -> dict[str, str]:
    """Return the figures of the run, path -> data URI of a smaller file with the same pixels."""
    figures = {}
    for path in sorted((run / "analysis").rglob("*.png"), key=_natural_order):
        stream = BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(stream, "WEBP", lossless=True, method=4)
        content = base64.b64encode(stream.getvalue()).decode()
        name = path.relative_to(run).with_suffix("").as_posix()
        figures[name] = f"data:image/webp;base64,{content}"
    return figures


def read_report_settings(run: Path) -> list[tuple[str, str]]:
    """Return option -> value of the config, then what status and environment say; no secrets."""
    found: list[tuple[str, str]] = []
    config = run / "config.yaml"
    if config.is_file():
        loaded = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        found += _flatten(mask_secrets(loaded), "")
    for name in _STATES:
        if (path := run / name).is_file():
            found += _flatten(mask_secrets(read_json(path)), path.stem)
    return found


def read_report_answers(run: Path, stage: str) -> dict[str, dict[str, str]]:
    """Return sample id -> what an evaluation of the same split and step says of it, by name."""
    path = run / "evaluation" / stage / "predictions.csv"
    answers: dict[str, dict[str, str]] = {}
    for row in _read_rows(path) if path.is_file() else ():
        said = {name: cell for name, cell in row.items() if cell and name != "sample_id"}
        said.pop("prompt", None)
        answers[row["sample_id"]] = said
    return answers


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Return what sorts `val-step80` before `val-step120`."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _read_table(run: Path, path: Path, most_rows: int | None) -> ReportTable:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        rows = [*islice(reader, most_rows)]
        count = len(rows) + sum(1 for _ in reader)
    name = path.relative_to(run).with_suffix("").as_posix()
    return ReportTable(name, columns, rows, count)


def _read_rows(path: Path) -> Iterable[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _flatten(node: Any, name: str) -> list[tuple[str, str]]:
    """Return the leaves of plain data with their dotted names."""
    found: list[tuple[str, str]] = []
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            found += _flatten(value, f"{name}.{key}" if name else str(key))
        return found
    if isinstance(node, list) and any(isinstance(each, Mapping) for each in node):
        for number, value in enumerate(node):
            found += _flatten(value, f"{name}[{number}]")
        return found
    text = node if isinstance(node, str) else json.dumps(node, default=str)
    return [(name, text)]


def _format(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _format_ends(ends: Any) -> str:
    low, high = ends
    return "" if low is None else f" [{low:.3f}, {high:.3f}]"
