"""Pictures of analysis results as PNG files: curves with intervals, heat maps, points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.statistics.interval import HIGH, LOW, VALUE, N
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.tracking.figures.figure import (
    GREY,
    PALETTE,
    finish_figure_axis,
    make_figure_panels,
    save_figure,
)
from lightning_mllm.tracking.figures.guard import guard_figure

_DASHES = ("-", "--", ":")
_SHORT = 4  # characters; a longer name of a column is written upright


def draw_analysis_plots(result: AnalysisResult, folder: Path) -> list[Path]:
    """Draw all plots of a result, each as `<plot>.png`.

    Args:
        result: The numbers.
        folder: Folder of the files.

    Returns:
        The files.
    """
    return [draw_analysis_plot(result, plot, folder / f"{plot.name}.png") for plot in result.plots]


@guard_figure
def draw_analysis_plot(result: AnalysisResult, plot: ResultPlot, output: Path) -> Path:
    """Draw a panel per coordinate of the result's first axis, with its N.

    Args:
        result: The numbers; their last axis is value, low_95, high_95 and n, or x and y of points.
        plot: How to draw them.
        output: The PNG to write.

    Returns:
        `output`.
    """
    titles: list[str] = []
    drawn: list[int] = []
    for index, name in enumerate(result.coords[result.axes[0]]):
        if plot.panels is None or name in plot.panels:
            titles.append(name if isinstance(name, str) else f"{result.axes[0]} {name}")
            drawn.append(index)
    values = _select(result, plot)[drawn]  # (panels, lines, places, statistics)
    places = result.coords[plot.x]
    points = plot.style == "points"
    figure, axes = make_figure_panels(titles, same_height=not points)
    images = []
    for axis, title, own in zip(axes, titles, values, strict=True):
        n = own.shape[1] if points else int(own[..., N].max(initial=0))
        axis.set_title(f"{title} (N = {n})", parse_math=False)
        axis.set_xlabel(plot.xlabel)
        if points:
            _draw_points(axis, plot, own)
        elif plot.style == "lines":
            _draw_lines(axis, plot, places, own, n)
        else:
            extent = _find_extent(values[..., VALUE])
            images.append(_draw_map(axis, plot, places, own[..., VALUE], extent))
    if images:
        figure.colorbar(images[0], ax=axes, label=plot.label, shrink=0.8)
    bands = f"; bands: 95 % intervals over {plot.over}" if plot.style == "lines" else ""
    figure.suptitle(f"{plot.title}{bands}", fontsize=11)
    return save_figure(figure, output)


def _select(result: AnalysisResult, plot: ResultPlot) -> Floats:
    """Return the values of a plot, (panels, lines, places, statistics)."""
    values = result.at(**plot.fixed)
    axes = [axis for axis in result.axes if axis not in plot.fixed]
    values = np.moveaxis(values, [axes.index(plot.y), axes.index(plot.x)], [1, 2])
    return values[:, [result.coords[plot.y].index(each) for each in plot.shown]]


def _draw_lines(
    axis: Axes, plot: ResultPlot, places: Sequence[Any], values: Floats, n: int
) -> None:
    named = isinstance(places[0], str)
    at = range(len(places)) if named else places
    for index, (label, own) in enumerate(zip(plot.shown.values(), values, strict=True)):
        colour = PALETTE[index % len(PALETTE)]
        dashes = _DASHES[index // len(PALETTE) % len(_DASHES)]
        counted = int(own[:, N].max(initial=0))
        if n and not counted:
            continue  # not measured in this panel
        shown = label if counted == n else f"{label} (N = {counted})"
        axis.plot(
            at,
            own[:, VALUE],
            dashes,
            marker="o",
            markersize=3,
            linewidth=1.8,
            color=colour,
            label=shown,
        )
        axis.fill_between(at, own[:, LOW], own[:, HIGH], color=colour, alpha=0.2, linewidth=0)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_ylabel(plot.label)
    finish_figure_axis(axis)
    axis.set_xlim(min(at) - 0.5, max(at) + 0.5)  # all layers, those without a number too
    if named:
        axis.set_xticks(at, places, rotation=45, ha="right", parse_math=False)


def _draw_map(
    axis: Axes, plot: ResultPlot, places: Sequence[Any], values: Floats, extent: float
) -> AxesImage:
    colours = colormaps["RdBu"].with_extremes(bad="#DDDDDD")  # where there is no number
    image = axis.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=-extent,
        vmax=extent,
        aspect="auto",
        interpolation="nearest",
    )
    ticks = range(0, len(places), max(1, len(places) // 12))
    names = [str(places[tick]) for tick in ticks]
    rotation = 90 if max(map(len, names)) > _SHORT else 0
    axis.set_xticks(ticks, names, rotation=rotation, parse_math=False)
    axis.set_yticks(range(len(plot.shown)), list(plot.shown.values()), fontsize=8, parse_math=False)
    return image


def _draw_points(axis: Axes, plot: ResultPlot, values: Floats) -> None:
    axis.plot(*values.transpose(2, 0, 1), color=GREY, linewidth=0.5, alpha=0.4)  # of one sample
    for index, (label, own) in enumerate(zip(plot.shown.values(), values, strict=True)):
        colour = PALETTE[index % len(PALETTE)]
        axis.scatter(own[:, 0], own[:, 1], s=12, color=colour, label=label, zorder=2)
    axis.set_ylabel(plot.label)
    finish_figure_axis(axis)


def _find_extent(values: Floats) -> float:
    """Return the largest absolute value; 1 if there is none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
