"""Pictures of analysis results: curves and rows with intervals, heat maps, points."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.statistics.interval import VALUE, N
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.tracking.figures import FigureKind
from lightning_mllm.tracking.figures.curves import (
    draw_figure_chance,
    draw_figure_curve,
    draw_figure_rows,
)
from lightning_mllm.tracking.figures.figure import (
    MEDIUM,
    SMALL,
    finish_figure_axis,
    label_figure_panels,
    make_figure_panels,
    place_figure_legend,
    save_figure,
    title_figure,
    title_figure_axis,
    wrap_figure_text,
)
from lightning_mllm.tracking.figures.guard import guard_figure
from lightning_mllm.tracking.figures.style import (
    GREY,
    REFERENCE_STYLES,
    FigureStyle,
    choose_figure_styles,
)

_SHORT = 4  # characters; a longer name of a column is written upright
_MOST_TICKS = 12

logger = logging.getLogger(__name__)


def draw_analysis_plots(
    result: AnalysisResult, folder: Path, kind: FigureKind = "png"
) -> list[Path]:
    """Draw the plots of a result that there are numbers for, each as `<plot>.<kind>`.

    Args:
        result: The numbers.
        folder: Folder of the files.
        kind: Kind of file; there is a PNG in any case.

    Returns:
        The files.
    """
    paths = [
        draw_analysis_plot(result, plot, folder / f"{plot.name}.{kind}") for plot in result.plots
    ]
    return [path for path in paths if path.is_file()]


@guard_figure
def draw_analysis_plot(result: AnalysisResult, plot: ResultPlot, output: Path) -> Path:
    """Draw a panel per coordinate of the result's first axis that has numbers, with its N.

    Args:
        result: The numbers; their last axis is value, low_95, high_95 and n, or x and y of points.
        plot: How to draw them.
        output: The file to write. Where there is no number to show there is no file.

    Returns:
        `output`.
    """
    values = result.plot_values(plot)
    drawn = list(_find_panels(result, plot, values))
    if not drawn:
        for path in (output, output.with_suffix(".png")):
            path.unlink(missing_ok=True)
        logger.info("%s: the figure %s is not drawn: it has no number.", result.name, plot.name)
        return output
    values = values[drawn]  # (panels, lines, places, statistics)
    names = [result.coords[result.axes[0]][index] for index in drawn]
    titles = [name if isinstance(name, str) else f"{result.axes[0]} {name}" for name in names]
    places = result.coords[plot.x]
    figure, axes = make_figure_panels(titles, same_height=plot.style != "points")
    bands = ""
    if plot.style == "points":
        for axis, title, own in zip(axes, titles, values, strict=True):
            title_figure_axis(axis, f"{title} (N = {own.shape[1]})")
            _draw_points(axis, plot, own)
    else:
        for axis, title, own in zip(axes, titles, values, strict=True):
            title_figure_axis(axis, *_count_samples(plot, title, own))
        if plot.style == "heat map":
            _draw_maps(axes, plot, places, values[..., VALUE])
        elif len(places) == 1:
            bands = "bars"
            _draw_rows(axes, plot, values[:, :, 0])
        else:
            bands = "bands"
            _draw_lines(axes, plot, places, values)
    ending = f"; {bands}: 95 % intervals over {plot.over}" if bands else ""
    title_figure(figure, f"{plot.title}{ending}")
    place_figure_legend(axes)
    return save_figure(figure, output)


def _find_panels(result: AnalysisResult, plot: ResultPlot, values: Floats) -> Iterator[int]:
    """Yield which panels there are that have a number besides those of references."""
    compared = [index for index, each in enumerate(plot.shown) if each not in plot.references]
    for index, name in enumerate(result.coords[result.axes[0]]):
        is_asked_for = plot.panels is None or name in plot.panels
        if is_asked_for and np.isfinite(values[index, compared][..., VALUE]).any():
            yield index


def _count_samples(plot: ResultPlot, title: str, values: Floats) -> list[str]:
    """Return the title with the largest N, and a paragraph for each other N that lines have."""
    counts = values[..., N].max(axis=1)
    found = [f"{title} (N = {int(counts.max())})"]
    for count in np.unique(counts[(counts > 0) & (counts < counts.max())])[::-1]:
        lines = [label for label, n in zip(plot.shown.values(), counts, strict=True) if n == count]
        found.append(f"N = {int(count)}: {', '.join(lines)}")
    return found


def _choose_styles(plot: ResultPlot) -> dict[str, FigureStyle]:
    """Return the label of each line -> how it looks; references are grey or black."""
    labels = {each: label for each, label in plot.shown.items() if each not in plot.references}
    styles = choose_figure_styles(list(labels.values()))
    for index, each in enumerate(each for each in plot.shown if each in plot.references):
        styles[plot.shown[each]] = REFERENCE_STYLES[index % len(REFERENCE_STYLES)]
    return styles


def _draw_lines(
    axes: Sequence[Axes], plot: ResultPlot, places: Sequence[Any], values: Floats
) -> None:
    styles = _choose_styles(plot)
    named = isinstance(places[0], str)
    at = list(range(len(places))) if named else list(places)
    for axis, panel in zip(axes, values, strict=True):
        axis.axhline(0, color=GREY, linewidth=0.8)
        for label, own in zip(plot.shown.values(), panel, strict=True):
            # between numbers a line goes on where there is none; between names there is nothing
            there = np.flatnonzero(np.isfinite(own[:, VALUE]) | named)
            some = [at[index] for index in there]
            draw_figure_curve(axis, some, own[there], label, styles[label])
        if plot.chance is not None:
            draw_figure_chance(axis, plot.chance)
        finish_figure_axis(axis)
        beside = max(0.5, 0.03 * (max(at) - min(at)))
        axis.set_xlim(min(at) - beside, max(at) + beside)  # places without a number, too
        if named:
            axis.set_xticks(at, places, rotation=45, ha="right", parse_math=False)
        elif len(at) <= _MOST_TICKS:
            axis.set_xticks(at)
    label_figure_panels(axes, plot.xlabel, plot.label)


def _draw_rows(axes: Sequence[Axes], plot: ResultPlot, values: Floats) -> None:
    """Draw a row per line with its interval; the values are (panels, lines, statistics)."""
    references = [plot.shown[each] for each in plot.shown if each in plot.references]
    draw_figure_rows(axes, list(plot.shown.values()), values, references)
    ends = np.array([axis.get_xlim() for axis in axes])
    for axis in axes:
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.set_xlim(min(ends.min(), 0), max(ends.max(), 0))
    label_figure_panels(axes, plot.label, "")


def _draw_maps(
    axes: Sequence[Axes], plot: ResultPlot, places: Sequence[Any], values: Floats
) -> None:
    colours = colormaps["RdBu"].with_extremes(bad="#DDDDDD")  # where there is no number
    extent = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    ticks = range(0, len(places), max(1, len(places) // _MOST_TICKS))
    names = [str(places[tick]) for tick in ticks]
    rotation = 90 if max(map(len, names)) > _SHORT else 0
    images: list[AxesImage] = []
    for axis, own in zip(axes, values, strict=True):
        image = axis.imshow(
            np.ma.masked_invalid(own),
            cmap=colours,
            vmin=-extent,
            vmax=extent,
            aspect="auto",
            interpolation="nearest",
        )
        images.append(image)
        axis.set_xticks(ticks, names, rotation=rotation, parse_math=False)
        axis.set_yticks(range(len(plot.shown)), list(plot.shown.values()), parse_math=False)
        axis.tick_params(labelsize=SMALL)
    bar = axes[0].figure.colorbar(images[0], ax=list(axes), shrink=0.8)
    bar.set_label(wrap_figure_text(plot.label, 2.8), fontsize=MEDIUM)
    bar.ax.tick_params(labelsize=SMALL)
    label_figure_panels(axes, plot.xlabel, "")


def _draw_points(axis: Axes, plot: ResultPlot, values: Floats) -> None:
    styles = _choose_styles(plot)
    axis.plot(*values.transpose(2, 0, 1), color=GREY, linewidth=0.5, alpha=0.4)  # of one sample
    for label, own in zip(plot.shown.values(), values, strict=True):
        colour, _, marker = styles[label]
        axis.scatter(own[:, 0], own[:, 1], s=12, color=colour, marker=marker, label=label, zorder=2)
    finish_figure_axis(axis)
    axis.set_xticks([])  # a plane has no unit
    axis.set_yticks([])
