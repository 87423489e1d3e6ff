"""The table of probes at the end of a fit: what they read before the training and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lightning_mllm.callbacks.score_tables import format_score
from lightning_mllm.evaluation import Interval


def draw_probe_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the accuracy of each probe before the training and at the last step.

    Args:
        rows: The rows of `probes.csv`.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    several = len({row.get("target") for row in rows}) > 1
    for row in rows:
        split = "validation" if row["stage"] == "val" else "test"
        end = f", {row['target']}" if several else ""
        groups.setdefault((f"{row['point']}, {row['probe']}{end}", split), []).append(row)
    seeds = len({row["seed"] for row in rows})
    caption = "accuracy" + (f", mean of {seeds} seeds" if seeds > 1 else "")
    table = Table("probes", box=SIMPLE_HEAD, pad_edge=False, caption=caption)
    table.columns[0].overflow = "fold"
    for column in ("split", "N", "before", "last"):
        table.add_column(column, justify="right")
    for (name, split), own in sorted(groups.items(), key=lambda each: each[0][1] == "test"):
        last = max(row["step"] for row in own)
        means = (_mean_at_step(own, 0), _mean_at_step(own, last) if last else "")
        table.add_row(Text(name), split, str(own[-1]["n_test"]), *means)
    return table


def draw_number_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return R^2 of each number before the training and at the last step.

    Args:
        rows: The rows of `number_probes.csv`.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        split = "validation" if row["stage"] == "val" else "test"
        groups.setdefault((f"{row['point']}, {row['target']}", split), []).append(row)
    caption = "R² of a ridge regression; brackets: 95 % intervals over pictures"
    table = Table("numbers", box=SIMPLE_HEAD, pad_edge=False, caption=caption)
    table.columns[0].overflow = "fold"
    for column in ("split", "N", "before", "last"):
        table.add_column(column, justify="right")
    for (name, split), own in sorted(groups.items(), key=lambda each: each[0][1] == "test"):
        last = max(row["step"] for row in own)
        cells = (format_row_at_step(own, 0, "r2"), format_row_at_step(own, last, "r2"))
        table.add_row(Text(name), split, str(own[-1]["n_test"]), cells[0], cells[1] if last else "")
    return table


def format_row_at_step(rows: Sequence[Mapping[str, Any]], step: int, column: str) -> str:
    """Return the number of a step with its interval; empty without a row of the step."""
    found = [row for row in rows if row["step"] == step]
    if not found:
        return ""
    return format_score(found[-1][column], Interval(found[-1]["low_95"], found[-1]["high_95"]))


def _mean_at_step(rows: Sequence[Mapping[str, Any]], step: int) -> str:
    found = [row["accuracy"] for row in rows if row["step"] == step]
    return f"{fmean(found):.3f}" if found else ""
