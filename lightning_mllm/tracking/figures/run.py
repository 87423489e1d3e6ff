"""Pictures of results as PNG files. The only importer of matplotlib: figures of its own, no global state."""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from lightning_mllm.evaluation import ClassificationResult
from lightning_mllm.tracking.figures.guard import spares_the_run

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_RIGHT, _WRONG, GREY = "#009E73", "#D55E00", "#6B6B6B"
_METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}
_TEST_STAGES = {"zero_shot": "test, before training", "test": "test"}
_OF_FEATURES = ("probe/", "drift/")  # metrics that have figures of their own
_MOST_CELL_LABELS = 20  # classes up to which a confusion cell shows its count
_MOST_TICK_LABELS = 60
_TILE, _GAP = 2.5, 0.25  # inches: side of a picture on the sheet, and the space between two

Curves = dict[str, dict[int, float]]  # metric -> step -> value


@dataclass(frozen=True)
class Verdict:
    """What one scorer says about a sample: its answer, the class it names (empty: none), and whether that is right."""

    scorer: str
    answer: str
    predicted: str
    correct: bool


@dataclass(frozen=True)
class Caption:
    """What stands below an image of a prediction sheet."""

    prompt: str
    target: str
    verdicts: Sequence[Verdict]


@spares_the_run
def learning_curve(metrics_csv: Path, output: Path, classes: int | None = None) -> Path:
    """Draw the model's loss, accuracy and macro-F1, as far as there are any, over the optimiser steps of a run.

    Lines are the validation split (step 0 is the evaluation before training, if there was one), per scorer; diamonds
    are the test split before and after training.

    Args:
        metrics_csv: The run's `metrics.csv`; where a step occurs twice the later row counts.
        output: The PNG to write.
        classes: Number of classes, for the line of chance accuracy.

    Returns:
        `output`.
    """
    curves = _read_curves(metrics_csv)
    scorers = sorted(
        {
            key.split("/")[1]
            for key in curves
            if key.endswith(tuple(f"/{name}" for name in _METRICS))
        }
    )
    titles = {
        metric: title
        for metric, title in _METRICS.items()
        if any(key.endswith(f"/{metric}") for key in curves)
    }
    figure = Figure(figsize=(5 * (1 + len(titles)) if scorers else 6, 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(titles), squeeze=False)[0]
    _draw_loss(axes[0], curves)
    for axis, (metric, title) in zip(axes[1:], titles.items(), strict=True):
        for scorer, colour in zip(scorers, PALETTE * len(scorers), strict=False):
            _draw_line(
                axis, curves.get(f"val/{scorer}/{metric}", {}), f"{scorer}, validation", colour
            )
            for stage, label in _TEST_STAGES.items():
                points = curves.get(f"{stage}/{scorer}/{metric}", {})
                filled = {"markerfacecolor": "white" if stage == "zero_shot" else colour}
                if points:
                    axis.plot(
                        *_xy(points),
                        "D",
                        color=colour,
                        label=f"{scorer}, {label}",
                        clip_on=False,
                        **filled,
                    )
        if classes and metric == "accuracy":
            axis.axhline(1 / classes, color=GREY, linestyle="--", label=f"chance (1/{classes})")
        axis.set(title=title, xlabel="Optimiser step", ylabel=f"{title} (0-1)", ylim=(0, 1.02))
        finish_axis(axis)
    return save_figure(figure, output)


@spares_the_run
def probe_curve(rows: Sequence[Mapping[str, Any]], output: Path) -> Path:
    """Draw what probes read from the features, per point and probe, over the optimiser steps of a run.

    Lines are means over the seeds on the validation split, bands the range of the seeds at each step; diamonds are the
    test split.

    Args:
        rows: Of `probes.csv`.
        output: The PNG to write.

    Returns:
        `output`.
    """
    figure = Figure(figsize=(5 * len(_METRICS), 4.2), layout="constrained")
    series = dict.fromkeys((row["point"], row["probe"]) for row in rows)
    for axis, (metric, title) in zip(
        figure.subplots(1, len(_METRICS)), _METRICS.items(), strict=True
    ):
        for (point, probe), colour in zip(series, PALETTE * len(series), strict=False):
            own = [row for row in rows if (row["point"], row["probe"]) == (point, probe)]
            watched = _by_step([row for row in own if row["stage"] == "val"], metric)
            _draw_line(
                axis,
                {step: fmean(values) for step, values in watched.items()},
                f"{point}, {probe}",
                colour,
            )
            low, high = ([pick(values) for values in watched.values()] for pick in (min, max))
            axis.fill_between(list(watched), low, high, color=colour, alpha=0.2, linewidth=0)
            for step, values in _by_step(
                [row for row in own if row["stage"] != "val"], metric
            ).items():
                axis.plot([step], [fmean(values)], "D", color=colour, clip_on=False)
        axis.set(title=f"Probes: {title}", ylabel=f"{title} (0-1)", ylim=(0, 1.02))
        axis.set_xlabel("Optimiser step (0: before training)")
        finish_axis(axis)
    return save_figure(figure, output)


def _by_step(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[int, list[float]]:
    values: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        values.setdefault(row["step"], []).append(row[metric])
    return values


@spares_the_run
def confusion_matrix(
    result: ClassificationResult, output: Path, title: str = "Confusion matrix"
) -> Path:
    """Draw who was taken for whom: colour is the share of the true class, the text the number of samples.

    Args:
        result: The counts.
        output: The PNG to write.
        title: Stands above, before the scores.

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
    axis.axvline(classes - 0.5, color=GREY, linewidth=1)  # what is right of it names no class
    if classes <= _MOST_TICK_LABELS:
        names = [_short(name, 24) for name in result.names]
        axis.set_xticks(range(classes + 1), [*names, "(invalid)"], rotation=90, parse_math=False)
        axis.set_yticks(range(classes), names, parse_math=False)
    if classes <= _MOST_CELL_LABELS:
        for (row, column), count in np.ndenumerate(result.confusion):
            if count:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=8)
    axis.set(xlabel="Predicted class", ylabel="True class")
    axis.set_title(
        f"{title}\nN = {result.n}, accuracy {result.accuracy:.3f}, macro-F1 {result.macro_f1:.3f}",
        fontsize=11,
    )
    return save_figure(figure, output)


@spares_the_run
def prediction_sheet(
    images: Sequence[Image.Image], captions: Sequence[Caption], output: Path, title: str = ""
) -> Path:
    """Draw a grid of images, each with its prompt, its true class and what every scorer answers.

    Args:
        images: The images.
        captions: One per image.
        output: The PNG to write.
        title: Stands above.

    Returns:
        `output`.
    """
    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    below = 0.7 + 0.18 * max(len(caption.verdicts) for caption in captions)  # inches for a caption
    width, height = columns * (_TILE + _GAP) + _GAP, rows * (_TILE + below) + 0.5
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.25 / height, title, ha="center", va="center", fontsize=12)
    for index, (picture, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        left, bottom = _GAP + column * (_TILE + _GAP), (rows - 1 - row) * (_TILE + below) + below
        axis = figure.add_axes((left / width, bottom / height, _TILE / width, _TILE / height))
        axis.set_axis_off()
        side = max(picture.size)
        axis.imshow(ImageOps.pad(picture.convert("RGB"), (side, side), color="white"))
        _write_caption(axis, caption)
    return save_figure(figure, output)


def _write_caption(axis: Axes, caption: Caption) -> None:
    prompt = textwrap.fill(_short(caption.prompt, 84), 44)
    written = [(prompt, GREY, 6.5), (f"true: {_short(caption.target, 34)}", "black", 9.0)]
    for verdict in caption.verdicts:
        sign, colour = ("\u2713", _RIGHT) if verdict.correct else ("\u2717", _WRONG)
        answer = _short(verdict.answer, 24) or "(empty)"
        written.append((f"{sign} {verdict.scorer}: {answer}", colour, 9.0))
    offset = -4.0
    for text, colour, size in written:
        axis.annotate(
            text,
            xy=(0, 0),
            xycoords="axes fraction",
            xytext=(0, offset),
            textcoords="offset points",
            va="top",
            color=colour,
            fontsize=size,
            parse_math=False,
        )
        offset -= 1.35 * size * (1 + text.count("\n"))


def _short(text: str, width: int) -> str:
    """Cut a text to one line of characters that the font has; models answer with any."""
    drawable = get_font(findfont(FontProperties())).get_charmap()
    line = " ".join(text.split())
    line = "".join(character if ord(character) in drawable else "\u25a1" for character in line)
    return line if len(line) <= width else line[: width - 3].rstrip() + "..."


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
    axis.plot(*_xy(train), color=GREY, linewidth=1, alpha=0.8, label="training batch")
    _draw_line(axis, curves.get("val/loss", {}), "validation", PALETTE[0])
    axis.set(title="Loss", xlabel="Optimiser step", ylabel="Cross-entropy (nats per answer token)")
    losses = [*train.values(), *curves.get("val/loss", {}).values()]
    axis.set_ylim(0, 1.05 * max(filter(math.isfinite, losses), default=1))
    finish_axis(axis)


def _draw_line(axis: Axes, points: Mapping[int, float], label: str, colour: str) -> None:
    if points:
        axis.plot(*_xy(points), "o-", color=colour, label=label, linewidth=2, markersize=4)


def _xy(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def finish_axis(axis: Axes) -> None:
    """Give an axis the look that all figures share, and its legend."""
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.03)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=8)


def save_figure(figure: Figure, output: Path) -> Path:
    """Write a figure as PNG, make its folder, and return the path."""
    output.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(output, dpi=150)
    return output
