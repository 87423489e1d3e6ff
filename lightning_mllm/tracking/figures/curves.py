"""Curves and rows of numbers with their intervals, which several kinds of figures are made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes

from lightning_mllm.statistics.interval import HIGH, LOW, VALUE
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.tracking.figures.figure import finish_figure_axis
from lightning_mllm.tracking.figures.style import CHANCE_STYLE, GREY, PALETTE, FigureStyle


def draw_figure_curve(
    axis: Axes, at: Sequence[float], values: Floats, label: str, style: FigureStyle
) -> None:
    """Draw a line with its band, or a single number with its bar; nothing if there is no number.

    Args:
        axis: The axis.
        at: (places,), where it goes.
        values: (places, statistics), of which the first are value, low_95 and high_95.
        label: Name of the line.
        style: How it looks.
    """
    there = np.isfinite(values[:, VALUE])
    if not there.any():
        return
    axis.plot(at, values[:, VALUE], label=label, **style.line())
    low, high = values[:, LOW], values[:, HIGH]
    if there.sum() == 1:  # a band has no width there
        axis.vlines(at, low, high, color=style.colour, linewidth=1)
    else:
        axis.fill_between(at, low, high, color=style.colour, alpha=0.18, linewidth=0)


def draw_figure_chance(axis: Axes, chance: float, label: str = "chance") -> None:
    """Draw what guessing gets as a level line."""
    axis.axhline(chance, label=label, color=CHANCE_STYLE.colour, linestyle=CHANCE_STYLE.dashes)


def draw_figure_rows(
    axes: Sequence[Axes],
    labels: Sequence[str],
    values: Floats,
    references: Collection[str] = (),
) -> None:
    """Draw a row with an interval per label, in panels whose upright axis is the same.

    Args:
        axes: The panels.
        labels: Names of the rows.
        values: (panels, rows, statistics), of which the first are value, low_95 and high_95.
        references: Names of the rows that others are compared with; they are grey.
    """
    rows = range(len(labels))
    for axis, panel in zip(axes, values, strict=True):
        for row, label, own in zip(rows, labels, panel, strict=True):
            colour = GREY if label in references else PALETTE[0]
            axis.plot(own[VALUE], row, "o", color=colour, markersize=4)
            axis.hlines(row, own[LOW], own[HIGH], color=colour, linewidth=1.6)
        finish_figure_axis(axis, whole_steps=False)
        axis.set_yticks(rows, list(labels), parse_math=False)
    if axes[0].get_ylim()[0] < axes[0].get_ylim()[1]:
        axes[0].invert_yaxis()  # of all panels
