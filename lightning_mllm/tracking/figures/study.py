"""Pictures of a study over many runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from lightning_mllm.statistics.interval import NO_INTERVAL, Interval
from lightning_mllm.tracking.figures.curves import (
    draw_figure_chance,
    draw_figure_curve,
    draw_figure_rows,
)
from lightning_mllm.tracking.figures.figure import (
    finish_figure_axis,
    label_figure_panels,
    make_figure_panels,
    place_figure_legend,
    save_figure,
    title_figure,
)
from lightning_mllm.tracking.figures.guard import guard_figure
from lightning_mllm.tracking.figures.style import (
    GREY,
    MARKERS,
    FigureStyle,
    choose_figure_styles,
)


class StudyPoint(NamedTuple):
    """A number of a curve, with its interval if there is one."""

    value: float
    low_95: float = nan
    high_95: float = nan


Curve = Mapping[int, StudyPoint]  # epoch, or what else is counted -> number


@dataclass(frozen=True)
class StudySlope:
    """A line from the untrained model to a trained one.

    Attributes:
        panel: Title of the panel, e.g. the preset.
        group: What shares a colour and a dash, e.g. the domain.
        kind: What shares a marker, e.g. the policy.
        before: Richness and score of the untrained model.
        after: Richness and score of the trained model.
        intervals: The intervals of richness and score of the trained model, if there are some.
    """

    panel: str
    group: str
    kind: str
    before: Sequence[float]
    after: Sequence[float]
    intervals: Sequence[Interval] = (NO_INTERVAL, NO_INTERVAL)


@dataclass(frozen=True)
class StudyDot:
    """Two numbers of one thing, with their intervals.

    Attributes:
        panel: Title of the panel: what the number on the y-axis is.
        label: Name of the thing that the numbers are of.
        x: Number on the x-axis.
        y: Number on the y-axis.
        x_interval: Interval of `x`, if there is one.
        y_interval: Interval of `y`, if there is one.
    """

    panel: str
    label: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@guard_figure
def draw_study_slopes(
    slopes: Sequence[StudySlope],
    output: Path,
    *,
    xlabel: str,
    ylabel: str,
    chance: Sequence[float] = (),
) -> Path:
    """Draw where training moves each model: leftwards it loses richness, upwards it gets better.

    Args:
        slopes: The lines.
        output: The file to write.
        xlabel: Label of the x-axis, the richness.
        ylabel: Label of the y-axis, the score.
        chance: Scores that guessing gets, e.g. one for each group.

    Returns:
        `output`.
    """
    panels = _unique(slope.panel for slope in slopes)
    kinds = _unique(slope.kind for slope in slopes)
    styles = choose_figure_styles(_unique(slope.group for slope in slopes))
    markers = {kind: MARKERS[1 + index % 6] for index, kind in enumerate(kinds)}
    figure, axes = make_figure_panels(panels, same_height=True)
    for axis, panel in zip(axes, panels, strict=True):
        if len(chance):
            span = f"guessing ({min(chance):.2f} to {max(chance):.2f})"
            axis.axhspan(min(chance), max(chance), color=GREY, alpha=0.25, lw=0, label=span)
        for slope in slopes:
            if slope.panel == panel:
                _draw_slope(axis, slope, styles[slope.group], markers[slope.kind])
        axis.plot([], [], "o", color=GREY, markerfacecolor="white", label="untrained")
        for kind, marker in markers.items():
            axis.plot([], [], marker, color=GREY, label=kind)
        for group, (colour, dashes, _) in styles.items():
            axis.plot([], [], linestyle=dashes, color=colour, label=group)
        finish_figure_axis(axis, whole_steps=False)
    label_figure_panels(axes, xlabel, ylabel)
    if any(np.isfinite(slope.intervals).any() for slope in slopes):
        title_figure(figure, "Crosses: 95 % intervals of the trained models")
    place_figure_legend(axes)
    return save_figure(figure, output)


def _draw_slope(axis: Axes, slope: StudySlope, style: FigureStyle, marker: str) -> None:
    colour, dashes, _ = style
    richness, scores = zip(slope.before, slope.after, strict=True)
    axis.plot(richness, scores, linestyle=dashes, color=colour, linewidth=1.5)
    axis.plot(*slope.before, "o", color=colour, markerfacecolor="white")
    axis.plot(*slope.after, marker, color=colour)
    (x, y), (of_x, of_y) = slope.after, slope.intervals
    bars: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.6}
    axis.plot(of_x, (y, y), **bars)
    axis.plot((x, x), of_y, **bars)


@guard_figure
def draw_study_lines(
    curves: Mapping[str, Mapping[str, Curve]],
    output: Path,
    *,
    ylabel: str,
    xlabel: str = "Epoch (-1: before training)",
    over: str = "seeds",
    chance: Mapping[str, float] | None = None,
) -> Path:
    """Draw a number over the epochs, or over something else that is counted.

    Where there is a single epoch, a row per line is drawn instead.

    Args:
        curves: Panel -> label of the line -> epoch, -1 for before training -> number.
        output: The file to write.
        ylabel: Label of the y-axis: what the number is.
        xlabel: Label of the x-axis: what the number is drawn over.
        over: What the intervals are taken over.
        chance: Panel -> what guessing gets.

    Returns:
        `output`.
    """
    labels = _unique(label for lines in curves.values() for label in lines)
    places: set[int] = set()
    for lines in curves.values():
        places.update(*lines.values())
    at = sorted(places)
    values = np.full((len(curves), len(labels), len(at), 3), np.nan)
    for index, lines in enumerate(curves.values()):
        for label, curve in lines.items():
            for place, point in curve.items():
                values[index, labels.index(label), at.index(place)] = point
    is_single = len(at) == 1
    figure, axes = make_figure_panels(list(curves), same_height=is_single)
    has_intervals = bool(np.isfinite(values[..., 1:]).any())
    if is_single:
        draw_figure_rows(axes, labels, values[:, :, 0])
        ending = f"; bars: 95 % intervals over {over}" if has_intervals else ""
        title_figure(figure, f"{xlabel.partition(' (')[0]} {at[0]}{ending}")
        label_figure_panels(axes, ylabel, "")
        return save_figure(figure, output)
    styles = choose_figure_styles(labels)
    for axis, panel, own in zip(axes, curves, values, strict=True):
        for label, line in zip(labels, own, strict=True):
            there = np.isfinite(line[:, 0])
            draw_figure_curve(axis, np.array(at)[there], line[there], label, styles[label])
        if chance is not None and panel in chance:
            draw_figure_chance(axis, chance[panel], "guessing")
        finish_figure_axis(axis)
    label_figure_panels(axes, xlabel, ylabel)
    if has_intervals:
        title_figure(figure, f"Bands: 95 % intervals over {over}")
    place_figure_legend(axes)
    return save_figure(figure, output)


@guard_figure
def draw_study_dots(dots: Sequence[StudyDot], output: Path, *, xlabel: str) -> Path:
    """Draw numbers over another one, a panel for each, with bars for their intervals.

    Args:
        dots: The points to draw; those with the same label share colour and marker.
        output: The file to write.
        xlabel: Label of the x-axis: what the number on it is.

    Returns:
        `output`.
    """
    panels = _unique(dot.panel for dot in dots)
    styles = choose_figure_styles(_unique(dot.label for dot in dots))
    figure, axes = make_figure_panels(panels)
    for axis, panel in zip(axes, panels, strict=True):
        for dot in dots:
            if dot.panel == panel:
                colour, _, marker = styles[dot.label]
                axis.errorbar(
                    [dot.x],
                    [dot.y],
                    _bar_lengths(dot.y, dot.y_interval),
                    _bar_lengths(dot.x, dot.x_interval),
                    marker,
                    color=colour,
                    label=dot.label,
                    markersize=5,
                    linewidth=1,
                )
        finish_figure_axis(axis, whole_steps=False)
    label_figure_panels(axes, xlabel, "")
    if any(dot.x_interval or dot.y_interval for dot in dots):
        title_figure(figure, "Bars: 95 % intervals over samples")
    place_figure_legend(axes)
    return save_figure(figure, output)


def _bar_lengths(value: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """Return how far an interval reaches below and above a value, as matplotlib takes it."""
    if interval is None:
        return None
    low, high = interval
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def _unique(names: Iterable[str]) -> list[str]:
    """Return each name once, in the order in which they come first."""
    return list(dict.fromkeys(names))
