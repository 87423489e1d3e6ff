"""The numbers of the runs beside each other: curves over the steps, tables of analyses."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_mllm.comparison.run_files import ComparedRun, find_step_folders, split_step_folder

_CURVES = (  # metrics that are drawn, in this order
    r"val/loss",
    r"val/[^/]+/accuracy",
    r"val/[^/]+/macro_f1",
    r"probe/val/.+/accuracy",
)
_SUMMARY = "summary.csv"
_NUMBERS = ("value", "low_95", "high_95", "n")  # columns of a summary; the others say of what

Curves = dict[str, dict[str, dict[int, float]]]  # metric -> run -> step -> value


def read_compared_curves(runs: Sequence[ComparedRun]) -> Curves:
    """Return the curves of the validation split that two runs or more have."""
    found: Curves = {}
    for run in _distinct_runs(runs):
        path = run.folder / "metrics.csv"
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for metric, value in row.items():
                    if value and "/" in metric:
                        curve = found.setdefault(metric, {}).setdefault(run.name, {})
                        curve[int(row["step"])] = float(value)
    chosen: Curves = {}
    for pattern in _CURVES:
        for metric in sorted(found):
            if re.fullmatch(pattern, metric) and len(found[metric]) > 1:
                chosen[metric] = found[metric]
    return chosen


def join_analyses(runs: Sequence[ComparedRun]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return `<split>-<analysis>` -> columns and rows of what all runs have measured.

    Of each run it is the last step. A row has the numbers of every run. Analyses without a `value`,
    such as maps of points, are left out: there is nothing to set side by side.
    """
    runs = _distinct_runs(runs)
    if len(runs) < 2:
        return {}
    summaries = [_find_summaries(run.folder) for run in runs]
    tables: dict[str, tuple[list[str], list[list[str]]]] = {}
    for name in summaries[0]:
        if all(name in found for found in summaries):
            axes, numbers = zip(*(_read_summary(found[name]) for found in summaries), strict=True)
            if all(each == axes[0] for each in axes):
                columns = [f"{run.name}/{number}" for run in runs for number in _NUMBERS]
                tables[name] = ([*axes[0], *columns], _join(numbers))
    return tables


def _distinct_runs(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs, each once: two evaluations of one run are compared, too."""
    found = {run.folder: run for run in reversed(runs)}
    return list(reversed(found.values()))


def _join(numbers: Sequence[dict[tuple[str, ...], list[str]]]) -> list[list[str]]:
    """Return a row for each place that all have."""
    rows = []
    for place in numbers[0]:
        if all(place in each for each in numbers):
            row = list(place)
            for each in numbers:
                row += each[place]
            rows.append(row)
    return rows


def _find_summaries(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for step in find_step_folders(folder / "analysis", f"*/{_SUMMARY}"):
        for path in sorted(step.glob(f"*/{_SUMMARY}")):
            with path.open(newline="", encoding="utf-8") as file:
                if "value" not in next(csv.reader(file), ()):
                    continue
            found[f"{split_step_folder(step)[0]}-{path.parent.name}"] = path
    return found


def _read_summary(path: Path) -> tuple[list[str], dict[tuple[str, ...], list[str]]]:
    """Return the columns that say what a number is of, and by their values the numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        axes = [name for name in reader.fieldnames or () if name not in _NUMBERS]
        found = {}
        for row in reader:
            found[tuple(_pick(row, axes))] = _pick(row, _NUMBERS)
    return axes, found


def _pick(row: dict[str, str], columns: Iterable[str]) -> list[str]:
    return [row.get(column) or "" for column in columns]
