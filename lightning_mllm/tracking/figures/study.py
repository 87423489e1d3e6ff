"""Pictures of a study over many runs, as PNG files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import AutoLocator

from lightning_mllm.tracking.figures.figure import (
    GREY,
    PALETTE,
    finish_figure_axis,
    make_figure_panels,
    save_figure,
)
from lightning_mllm.tracking.figures.guard import guard_figure

_MARKERS = ("s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":")

Curve = Mapping[int, float]  # epoch, or what else is counted -> value


@dataclass(frozen=True)
class StudySlope:
    """A line from the untrained model to a trained one.

    Attributes:
        panel: Title of the panel, e.g. the preset.
        group: What shares a colour, e.g. the domain.
        kind: What shares a marker, e.g. the policy.
        before: Richness and score of the untrained model.
        after: Richness and score of the trained model.
    """

    panel: str
    group: str
    kind: str
    before: tuple[float, float]
    after: tuple[float, float]


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
    slopes: Sequence[StudySlope], output: Path, *, xlabel: str, ylabel: str
) -> Path:
    """Draw where training moves each model: leftwards it loses richness, upwards it gets better.

    Args:
        slopes: The lines.
        output: The PNG to write.
        xlabel: Label of the x-axis, the richness.
        ylabel: Label of the y-axis, the score.

    Returns:
        `output`.
    """
    panels = _unique(slope.panel for slope in slopes)
    groups = _unique(slope.group for slope in slopes)
    kinds = _unique(slope.kind for slope in slopes)
    colours = {group: _cycle(PALETTE, index) for index, group in enumerate(groups)}
    markers = {kind: _cycle(_MARKERS, index) for index, kind in enumerate(kinds)}
    figure, axes = make_figure_panels(panels, same_height=True)
    for axis, panel in zip(axes, panels, strict=True):
        for slope in slopes:
            if slope.panel == panel:
                _draw_slope(axis, slope, colours[slope.group], markers[slope.kind])
        axis.plot([], [], "o", color=GREY, markerfacecolor="white", label="untrained")
        for kind, marker in markers.items():
            axis.plot([], [], marker, color=GREY, label=kind)
        for group, colour in colours.items():
            axis.plot([], [], "-", color=colour, label=group)
        axis.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        finish_figure_axis(axis)
        axis.xaxis.set_major_locator(AutoLocator())  # scores are not whole numbers
    return save_figure(figure, output)


def _draw_slope(axis: Axes, slope: StudySlope, colour: str, marker: str) -> None:
    richness, scores = zip(slope.before, slope.after, strict=True)
    axis.plot(richness, scores, color=colour, linewidth=1.5, alpha=0.8)
    axis.plot(*slope.before, "o", color=colour, markerfacecolor="white")
    axis.plot(*slope.after, marker, color=colour)


@guard_figure
def draw_study_lines(
    curves: Mapping[str, Mapping[str, Curve]],
    output: Path,
    *,
    ylabel: str,
    xlabel: str = "Epoch (-1: before training)",
) -> Path:
    """Draw a number over the epochs, or over something else that is counted.

    Args:
        curves: Panel -> label of the line -> epoch, -1 for before training -> value.
        output: The PNG to write.
        ylabel: Label of the y-axis: what the number is.
        xlabel: Label of the x-axis: what the number is drawn over.

    Returns:
        `output`.
    """
    labels: dict[str, None] = {}  # in order
    for lines in curves.values():
        labels |= dict.fromkeys(lines)
    places = {label: index for index, label in enumerate(labels)}
    figure, axes = make_figure_panels(list(curves))
    for axis, (panel, lines) in zip(axes, curves.items(), strict=True):
        for label, curve in lines.items():
            epochs = sorted(curve)
            axis.plot(
                epochs,
                [curve[epoch] for epoch in epochs],
                marker="o",
                markersize=4,
                label=label,
                color=_cycle(PALETTE, places[label]),
                linestyle=_cycle(_DASHES, places[label] // len(PALETTE)),
            )
        axis.set(title=panel, xlabel=xlabel, ylabel=ylabel)
        finish_figure_axis(axis)
    return save_figure(figure, output)


@guard_figure
def draw_study_dots(dots: Sequence[StudyDot], output: Path, *, xlabel: str) -> Path:
    """Draw numbers over another one, a panel for each, with bars for their intervals.

    Args:
        dots: The points to draw; those with the same label share colour and marker.
        output: The PNG to write.
        xlabel: Label of the x-axis: what the number on it is.

    Returns:
        `output`.
    """
    panels = _unique(dot.panel for dot in dots)
    labels = _unique(dot.label for dot in dots)
    places = {label: index for index, label in enumerate(labels)}
    figure, axes = make_figure_panels(panels)
    for axis, panel in zip(axes, panels, strict=True):
        for dot in dots:
            if dot.panel == panel:
                axis.errorbar(
                    [dot.x],
                    [dot.y],
                    _bar_lengths(dot.y, dot.y_interval),
                    _bar_lengths(dot.x, dot.x_interval),
                    _cycle(_MARKERS, places[dot.label] // len(PALETTE)),
                    color=_cycle(PALETTE, places[dot.label]),
                    label=dot.label,
                    linewidth=1,
                )
        axis.set(title=panel, xlabel=xlabel)
        finish_figure_axis(axis)
        axis.xaxis.set_major_locator(AutoLocator())  # scores are not whole numbers
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


def _cycle(choices: Sequence[str], index: int) -> str:
    return choices[index % len(choices)]
