"""Pictures of what analyses find, as PNG files: curves with their intervals, heat maps, and points on a plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from lightning_mllm.analysis.core.result import AnalysisResult, Floats, Plot
from lightning_mllm.tracking.figures.guard import spares_the_run
from lightning_mllm.tracking.figures.run import GREY, PALETTE, finish_axis, save_figure
from lightning_mllm.tracking.figures.study import make_panels

_DASHES = ("-", "--", ":")
_SHORT = 4  # a longer name of a column stands upright


def draw_plots(result: AnalysisResult, folder: Path) -> list[Path]:
    """Draw what a result says is to be drawn, `<plot>.png` each.

    Args:
        result: The numbers.
        folder: Where the files go.

    Returns:
        The files.
    """
    return [draw_plot(result, plot, folder / f"{plot.name}.png") for plot in result.plots]


@spares_the_run
def draw_plot(result: AnalysisResult, plot: Plot, output: Path) -> Path:
    """Draw a panel per coordinate of the result's first axis, with its N.

    Args:
        result: The numbers; their last axis is value, low_95, high_95 and n, or that of points x and y.
        plot: What is drawn.
        output: The PNG to write.

    Returns:
        `output`.
    """
    panels = result.axes[0]
    drawn = [
        place
        for place, each in enumerate(result.coords[panels])
        if plot.panels is None or each in plot.panels
    ]
    names = [result.coords[panels][place] for place in drawn]
    titles = [str(name) if isinstance(name, str) else f"{panels} {name}" for name in names]
    values = _chosen(result, plot)[drawn]  # (panels, lines, places, statistics)
    points = plot.style == "points"
    figure, axes = make_panels(titles, same_height=not points)
    images = []
    for axis, title, own in zip(axes, titles, values, strict=True):
        n = own.shape[1] if points else int(own[..., 3].max(initial=0))
        axis.set_title(f"{title} (N = {n})", parse_math=False)
        axis.set_xlabel(plot.xlabel)
        if points:
            _draw_points(axis, plot, own)
        elif plot.style == "lines":
            _draw_lines(axis, plot, result.coords[plot.x], own, n)
        else:
            images.append(
                _draw_map(axis, plot, result.coords[plot.x], own[..., 0], _extent(values[..., 0]))
            )
    if images:
        figure.colorbar(images[0], ax=axes, label=plot.label, shrink=0.8)
    bands = f"; bands: 95 % intervals over {plot.over}" if plot.style == "lines" else ""
    figure.suptitle(f"{plot.title}{bands}", fontsize=11)
    return save_figure(figure, output)


def _chosen(result: AnalysisResult, plot: Plot) -> Floats:
    """Return (panels, lines, places, statistics)."""
    values = result.at(**plot.fixed)
    axes = [axis for axis in result.axes if axis not in plot.fixed]
    values = np.moveaxis(values, [axes.index(plot.y), axes.index(plot.x)], [1, 2])
    return values[:, [result.coords[plot.y].index(each) for each in plot.shown]]


def _draw_lines(axis: Axes, plot: Plot, places: Sequence[Any], values: Floats, n: int) -> None:
    named = isinstance(places[0], str)
    at = range(len(places)) if named else places
    for index, (label, own) in enumerate(zip(plot.shown.values(), values, strict=True)):
        colour, dashes = (
            PALETTE[index % len(PALETTE)],
            _DASHES[index // len(PALETTE) % len(_DASHES)],
        )
        counted = int(own[:, 3].max(initial=0))
        if n and not counted:
            continue  # not measured in this panel
        shown = label if counted == n else f"{label} (N = {counted})"
        axis.plot(
            at,
            own[:, 0],
            dashes,
            marker="o",
            markersize=3,
            linewidth=1.8,
            color=colour,
            label=shown,
        )
        axis.fill_between(at, own[:, 1], own[:, 2], color=colour, alpha=0.2, linewidth=0)
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_ylabel(plot.label)
    finish_axis(axis)
    axis.set_xlim(min(at) - 0.5, max(at) + 0.5)  # all layers, those without a number too
    if named:
        axis.set_xticks(at, places, rotation=45, ha="right", parse_math=False)


def _draw_map(
    axis: Axes, plot: Plot, places: Sequence[Any], values: Floats, extent: float
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
    axis.set_xticks(
        ticks, names, rotation=90 if max(map(len, names)) > _SHORT else 0, parse_math=False
    )
    axis.set_yticks(range(len(plot.shown)), list(plot.shown.values()), fontsize=8, parse_math=False)
    return image


def _draw_points(axis: Axes, plot: Plot, values: Floats) -> None:
    axis.plot(*values.transpose(2, 0, 1), color=GREY, linewidth=0.5, alpha=0.4)  # of one sample
    for index, (label, own) in enumerate(zip(plot.shown.values(), values, strict=True)):
        axis.scatter(
            own[:, 0], own[:, 1], s=12, color=PALETTE[index % len(PALETTE)], label=label, zorder=2
        )
    axis.set_ylabel(plot.label)
    finish_axis(axis)


def _extent(values: Floats) -> float:
    """Return the largest number, whatever its sign; 1 if there is none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
