"""Pictures of a study over many runs, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from lightning_mllm.tracking.figures.guard import spares_the_run
from lightning_mllm.tracking.figures.run import GREY, PALETTE, finish_axis, save_figure

_MARKERS = ("s", "^", "D", "v", "P", "X")
_COLUMNS = 3  # of panels

Curve = Mapping[int, float]  # epoch -> value


@dataclass(frozen=True)
class Slope:
    """A line from the untrained model to a trained one.

    Attributes:
        panel: Title of the panel, e.g. the preset.
        group: What has one colour, e.g. the domain.
        kind: What has one marker, e.g. the policy.
        before: Richness and score of the untrained model.
        after: Those of the trained one.
    """

    panel: str
    group: str
    kind: str
    before: tuple[float, float]
    after: tuple[float, float]


@dataclass(frozen=True)
class Dot:
    """Two numbers of one thing, with their intervals.

    Attributes:
        panel: Title of the panel: what the upright number is.
        label: What it is of.
        x: The number to the right.
        y: The upright number.
        x_interval: Of the number to the right, if there is one.
        y_interval: Of the upright number, likewise.
    """

    panel: str
    label: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@spares_the_run
def slope_plot(slopes: Sequence[Slope], output: Path, *, xlabel: str, ylabel: str) -> Path:
    """Draw where training moves each model: to the left it loses richness, upwards it gets better.

    Args:
        slopes: The lines.
        output: The PNG to write.
        xlabel: Of the richness.
        ylabel: Of the score.

    Returns:
        `output`.
    """
    panels = list(dict.fromkeys(slope.panel for slope in slopes))
    groups = list(dict.fromkeys(slope.group for slope in slopes))
    kinds = list(dict.fromkeys(slope.kind for slope in slopes))
    figure, axes = make_panels(panels, same_height=True)
    for axis, panel in zip(axes, panels, strict=True):
        for slope in (each for each in slopes if each.panel == panel):
            colour = PALETTE[groups.index(slope.group) % len(PALETTE)]
            marker = _MARKERS[kinds.index(slope.kind) % len(_MARKERS)]
            axis.plot(*zip(slope.before, slope.after, strict=True), color=colour, linewidth=1.5, alpha=0.8)
            axis.plot(*slope.before, "o", color=colour, markerfacecolor="white")
            axis.plot(*slope.after, marker, color=colour)
        axis.plot([], [], "o", color=GREY, markerfacecolor="white", label="untrained")
        for kind, marker in zip(kinds, _MARKERS * len(kinds), strict=False):
            axis.plot([], [], marker, color=GREY, label=kind)
        for index, group in enumerate(groups):
            axis.plot([], [], "-", color=PALETTE[index % len(PALETTE)], label=group)
        axis.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        finish_axis(axis)
        axis.xaxis.set_major_locator(AutoLocator())  # scores are no whole numbers
    return save_figure(figure, output)


@spares_the_run
def epoch_plot(
    curves: Mapping[str, Mapping[str, Curve]],
    output: Path,
    *,
    ylabel: str,
    xlabel: str = "Epoch (-1: before training)",
) -> Path:
    """Draw a number over the epochs, -1 being before training, or over something else that is counted.

    Args:
        curves: Panel -> label of the line -> epoch -> value.
        output: The PNG to write.
        ylabel: What the number is.
        xlabel: What it is drawn over.

    Returns:
        `output`.
    """
    labels = list(dict.fromkeys(label for lines in curves.values() for label in lines))
    figure, axes = make_panels(list(curves))
    for axis, (panel, lines) in zip(axes, curves.items(), strict=True):
        for label, curve in lines.items():
            index = labels.index(label)
            colour, dashes = PALETTE[index % len(PALETTE)], ("-", "--", ":")[index // len(PALETTE) % 3]
            epochs = sorted(curve)
            values = [curve[epoch] for epoch in epochs]
            axis.plot(epochs, values, marker="o", markersize=4, label=label, color=colour, linestyle=dashes)
        axis.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        finish_axis(axis)
    return save_figure(figure, output)


@spares_the_run
def dot_plot(dots: Sequence[Dot], output: Path, *, xlabel: str) -> Path:
    """Draw numbers over another one, a panel for each, with bars for their intervals.

    Args:
        dots: What is drawn; those of one label have one colour and marker.
        output: The PNG to write.
        xlabel: What the number to the right is.

    Returns:
        `output`.
    """
    panels = list(dict.fromkeys(dot.panel for dot in dots))
    labels = list(dict.fromkeys(dot.label for dot in dots))
    figure, axes = make_panels(panels)
    for axis, panel in zip(axes, panels, strict=True):
        for dot in (each for each in dots if each.panel == panel):
            index = labels.index(dot.label)
            colour, marker = PALETTE[index % len(PALETTE)], _MARKERS[index // len(PALETTE) % len(_MARKERS)]
            across, upright = _reach(dot.x, dot.x_interval), _reach(dot.y, dot.y_interval)
            axis.errorbar([dot.x], [dot.y], upright, across, marker, color=colour, label=dot.label, linewidth=1)
        axis.set(title=panel, xlabel=xlabel)
        finish_axis(axis)
        axis.xaxis.set_major_locator(AutoLocator())  # scores are no whole numbers
    return save_figure(figure, output)


def _reach(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """Return how far an interval reaches below and above a value, as matplotlib takes it."""
    return None if interval is None else [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]


def make_panels(titles: Sequence[str], *, same_height: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure with a panel per title, a few to a row.

    Args:
        titles: Of the panels.
        same_height: Whether they have one y-axis, so that they compare.
    """
    columns = min(_COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(5 * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=same_height).ravel().tolist()
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    return figure, axes[: len(titles)]
