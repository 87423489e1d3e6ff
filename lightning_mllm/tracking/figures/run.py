"""Pictures of a run: its learning curve, the probes' curve, a confusion matrix.

Only the modules of `tracking.figures` import matplotlib, and none of them its global state.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_mllm.evaluation import ClassificationResult
from lightning_mllm.tracking.figures.curves import draw_figure_chance
from lightning_mllm.tracking.figures.figure import (
    finish_figure_axis,
    make_figure_panels,
    place_figure_legend,
    save_figure,
    shorten_figure_text,
    title_figure_axis,
)
from lightning_mllm.tracking.figures.guard import guard_figure
from lightning_mllm.tracking.figures.style import (
    GREY,
    PALETTE,
    FigureStyle,
    choose_figure_styles,
)

_METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}
_OF_SCORERS = tuple(f"/{name}" for name in _METRICS)  # ends of metrics' names
_TEST_STAGES = {"zero_shot": "test, before training", "test": "test"}
_OF_FEATURES = ("probe/", "drift/", "change/")  # metrics that have figures of their own
_MOST_CELL_LABELS = 20  # classes up to which a confusion cell shows its count
_MOST_TICK_LABELS = 60

Curves = dict[str, dict[int, float]]  # metric -> step -> value


@guard_figure
def draw_learning_curve_of_run(metrics_csv: Path, output: Path, classes: int | None = None) -> Path:
    """Draw the model's loss, accuracy and macro-F1, as far as they exist, over the optimiser steps.

    Lines are the validation split (step 0 is the evaluation before training, if there was one), per
    scorer; single large markers are the test split before and after training.

    Args:
        metrics_csv: The run's `metrics.csv`.
        output: The file to write.
        classes: Number of classes, for the line of chance accuracy.

    Returns:
        `output`.
    """
    curves = _read_curves(metrics_csv)
    scored = [key.split("/") for key in curves if key.endswith(_OF_SCORERS)]
    scorers = sorted({parts[1] for parts in scored})
    found = {parts[-1] for parts in scored}
    metrics = [metric for metric in _METRICS if metric in found]
    figure, axes = make_figure_panels(["Loss", *(_METRICS[metric] for metric in metrics)])
    _draw_loss(axes[0], curves)
    place_figure_legend(axes[:1])
    for axis, metric in zip(axes[1:], metrics, strict=True):
        for scorer, style in choose_figure_styles(scorers).items():
            _draw_scorer(axis, curves, scorer, metric, style)
        if metric == "accuracy":
            _draw_chance(axis, classes)
        axis.set(xlabel="Optimiser step", ylabel=f"{_METRICS[metric]} (0-1)", ylim=(0, 1.02))
        finish_figure_axis(axis)
    if metrics:
        place_figure_legend(axes[1:])
    return save_figure(figure, output)


def _draw_scorer(axis: Axes, curves: Curves, scorer: str, metric: str, style: FigureStyle) -> None:
    """Draw a metric of a scorer: a line for the validation split, markers for the test split."""
    validation = curves.get(f"val/{scorer}/{metric}", {})
    _draw_line(axis, validation, f"{scorer}, validation", style)
    for stage, label in _TEST_STAGES.items():
        if points := curves.get(f"{stage}/{scorer}/{metric}"):
            axis.plot(
                *_sort_by_step(points),
                style.marker,
                color=style.colour,
                label=f"{scorer}, {label}",
                clip_on=False,
                markersize=9,
                markeredgewidth=1 if stage == "zero_shot" else 2,
                markerfacecolor="none",  # what scores the same is seen, too
            )


def _draw_chance(axis: Axes, classes: int | None) -> None:
    if classes:
        draw_figure_chance(axis, 1 / classes, f"chance (1/{classes})")


@guard_figure
def draw_probe_curve_of_run(
    rows: Sequence[Mapping[str, Any]], output: Path, classes: int | None = None
) -> Path:
    """Draw the accuracy and macro-F1 of probes, per point and probe, over the optimiser steps.

    Lines are means over the seeds on the validation split, bands the range of the seeds at each
    step; single large markers are the test split.

    Args:
        rows: The rows of `probes.csv`.
        output: The file to write.
        classes: Number of classes, for the line of chance accuracy.

    Returns:
        `output`.
    """
    counts = _count_samples(rows)
    titles = [f"Probes, {title}; bands: range of the seeds{counts}" for title in _METRICS.values()]
    figure, axes = make_figure_panels(titles)
    by_probe: dict[str, list[Mapping[str, Any]]] = {}
    several = len({row.get("target") for row in rows}) > 1
    for row in rows:
        end = f", {row['target']}" if several else ""
        by_probe.setdefault(f"{row['point']}, {row['probe']}{end}", []).append(row)
    styles = choose_figure_styles(list(by_probe))
    for axis, (metric, title) in zip(axes, _METRICS.items(), strict=True):
        for name, own in by_probe.items():
            _draw_probe(axis, own, metric, name, styles[name])
        if metric == "accuracy":
            _draw_chance(axis, classes)
        axis.set(ylabel=f"{title} (0-1)", ylim=(0, 1.02))
        axis.set_xlabel("Optimiser step (0: before training)")
        finish_figure_axis(axis)
    place_figure_legend(axes)
    return save_figure(figure, output)


def _count_samples(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many samples probes are trained and scored on, as far as the rows say it."""
    counts: dict[str, Any] = {}
    for row in rows:
        if row.get("n_test") is not None:
            counts["train"] = row["n_train"]
            counts["validation" if row["stage"] == "val" else "test"] = row["n_test"]
    return f"; N: {', '.join(f'{name} {n}' for name, n in counts.items())}" if counts else ""


def _draw_probe(
    axis: Axes, rows: Sequence[Mapping[str, Any]], metric: str, label: str, style: FigureStyle
) -> None:
    validation = _group_by_step([row for row in rows if row["stage"] == "val"], metric)
    test = _group_by_step([row for row in rows if row["stage"] != "val"], metric)
    steps, values = list(validation), list(validation.values())
    means = dict(zip(steps, map(fmean, values), strict=True))
    _draw_line(axis, means, f"{label}, validation", style)
    low, high = list(map(min, values)), list(map(max, values))
    axis.fill_between(steps, low, high, color=style.colour, alpha=0.18, linewidth=0)
    if test:
        axis.plot(
            list(test),
            list(map(fmean, test.values())),
            style.marker,
            color=style.colour,
            label=f"{label}, test",
            clip_on=False,
            markersize=9,
            markeredgewidth=1.5,
            markerfacecolor="none",
        )


def _group_by_step(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[int, list[float]]:
    values: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        values.setdefault(row["step"], []).append(row[metric])
    return values


@guard_figure
def draw_confusion_matrix_of_run(
    result: ClassificationResult, output: Path, title: str = "Confusion matrix"
) -> Path:
    """Draw how often each class was predicted for each true class.

    The colour is the share of the true class, the text the number of samples.

    Args:
        result: The counts.
        output: The file to write.
        title: The title, to which the scores are added.

    Returns:
        `output`.
    """
    totals = result.confusion.sum(axis=1, keepdims=True)
    shares = result.confusion / np.maximum(totals, 1)
    classes = len(result.names)
    side = min(max(4.5, 0.45 * classes + 2.5), 24)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="Share of the true class", shrink=0.8)
    # to the right of it: answers that name no class
    axis.axvline(classes - 0.5, color=GREY, linewidth=1)
    if classes <= _MOST_TICK_LABELS:
        names = [shorten_figure_text(name, 24) for name in result.names]
        axis.set_xticks(range(classes + 1), [*names, "(invalid)"], rotation=90, parse_math=False)
        axis.set_yticks(range(classes), names, parse_math=False)
    if classes <= _MOST_CELL_LABELS:
        for (row, column), count in np.ndenumerate(result.confusion):
            if count:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=8)
    axis.set(xlabel="Predicted class", ylabel="True class")
    scores = f"accuracy {result.accuracy:.3f}, macro-F1 {result.macro_f1:.3f}"
    title_figure_axis(axis, title, f"N = {result.n}, {scores}")
    return save_figure(figure, output)


def _read_curves(metrics_csv: Path) -> Curves:
    curves: Curves = {}
    with metrics_csv.open(newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if "/" in key and value and not key.startswith(_OF_FEATURES):
                    curves.setdefault(key, {})[int(row["step"])] = float(value)
    return curves


def _draw_loss(axis: Axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    train = curves.get("train/loss") or curves.get("train/loss_step", {})
    axis.plot(*_sort_by_step(train), color=GREY, linewidth=1, alpha=0.8, label="training batch")
    style = FigureStyle(PALETTE[0], "-", "o")
    _draw_line(axis, curves.get("val/loss", {}), "validation", style)
    axis.set(xlabel="Optimiser step", ylabel="Cross-entropy (nats per answer token)")
    losses = [*train.values(), *curves.get("val/loss", {}).values()]
    axis.set_ylim(0, 1.05 * max(filter(math.isfinite, losses), default=1))
    finish_figure_axis(axis)


def _draw_line(axis: Axes, points: Mapping[int, float], label: str, style: FigureStyle) -> None:
    if points:
        axis.plot(*_sort_by_step(points), label=label, **style.line())


def _sort_by_step(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(points)
    return steps, [points[step] for step in steps]
