"""What all figures share: panels, axes, legends, texts, and the files that they are written to."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

_COLUMNS = {1: 1, 2: 2, 4: 2}  # number of panels -> panels in a row; of other numbers 3
_PANELS = {1: (6.4, 4.2), 2: (4.8, 3.6), 3: (3.8, 3.1)}  # panels in a row -> size in inches
SMALL, MEDIUM, LARGE = 8, 9, 11  # points
_MOST_INSIDE = 4  # curves, and panels, up to which legends are inside the axes
_LEGEND_LINE = 0.19  # inches


def shorten_figure_text(text: str, width: int) -> str:
    """Return one line of a text, in characters that the font has; models answer with any."""
    drawable = get_font(findfont(FontProperties())).get_charmap()
    line = " ".join(text.split())
    line = "".join(each if ord(each) in drawable else "\u25a1" for each in line)
    return line if len(line) <= width else line[: width - 3].rstrip() + "..."


def wrap_figure_text(text: str, inches: float, points: int = MEDIUM) -> str:
    """Return a text in as many lines as a width needs."""
    width = max(20, int(inches * 108 / points))  # an average character is 2/3 as wide as high
    return textwrap.fill(text, width, break_on_hyphens=False)


def make_figure_panels(
    titles: Sequence[str], *, same_height: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a panel per title, a few to a row.

    Args:
        titles: Titles of the panels.
        same_height: Whether the panels share the range of the y-axis, so that they can be compared.
    """
    columns = _COLUMNS.get(len(titles), 3)
    rows = math.ceil(len(titles) / columns)
    width, height = _PANELS[columns]
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=same_height).ravel().tolist()
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    for axis, title in zip(axes, titles, strict=False):
        title_figure_axis(axis, title)
    return figure, axes[: len(titles)]


def title_figure(figure: Figure, title: str) -> None:
    """Write the title above all panels, in as many lines as the width needs."""
    text = wrap_figure_text(title, figure.get_figwidth(), LARGE)
    figure.suptitle(text, fontsize=LARGE, parse_math=False)


def title_figure_axis(axis: Axes, *paragraphs: str) -> None:
    """Write the title above a panel, in as many lines as its width needs."""
    figure: Figure = axis.figure  # type: ignore[assignment]  # there are no subfigures
    inches = axis.get_position().width * figure.get_figwidth() + 0.3
    text = "\n".join(wrap_figure_text(each, inches) for each in paragraphs)
    axis.set_title(text, fontsize=MEDIUM, parse_math=False)


def finish_figure_axis(axis: Axes, *, whole_steps: bool = True) -> None:
    """Give an axis the look that all figures share.

    Args:
        axis: The axis.
        whole_steps: Whether what runs to the right is counted, so that only whole numbers are
            marked.
    """
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.03)
    axis.tick_params(labelsize=SMALL)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_fontsize(MEDIUM)
    if whole_steps:
        left, right = axis.get_xlim()
        if right - left < 1:  # a single step
            axis.set_xlim(round((left + right) / 2) - 1, round((left + right) / 2) + 1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def label_figure_panels(axes: Sequence[Axes], xlabel: str, ylabel: str) -> None:
    """Write what runs to the right below the lowest panels, what runs upwards left of the first."""
    columns = _COLUMNS.get(len(axes), 3)
    width, height = _PANELS[columns]
    for index, axis in enumerate(axes):
        if index + columns >= len(axes):
            axis.set_xlabel(wrap_figure_text(xlabel, width - 0.6), fontsize=MEDIUM)
        if index % columns == 0:
            axis.set_ylabel(wrap_figure_text(ylabel, height - 0.7), fontsize=MEDIUM)


def place_figure_legend(axes: Sequence[Axes]) -> None:
    """Say what the curves of panels are called.

    A few curves are named inside each panel. More of them, or those of many panels, are named once
    outside the axes: where the last row has no panel, or below.
    """
    named: dict[str, Artist] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            named.setdefault(label, handle)
    if max(len(named), len(axes)) <= _MOST_INSIDE:
        for axis in axes:
            if axis.get_legend_handles_labels()[1]:
                axis.legend(frameon=False, fontsize=SMALL)
    elif named:
        _place_legend_outside(named, axes)


def _place_legend_outside(named: dict[str, Artist], axes: Sequence[Axes]) -> None:
    figure: Figure = axes[0].figure  # type: ignore[assignment]  # there are no subfigures
    texts = [wrap_figure_text(label, figure.get_figwidth() - 1, SMALL) for label in named]
    width = 0.075 * max(len(line) for text in texts for line in text.splitlines()) + 0.6
    free = [each for each in figure.axes if each not in axes and not each.axison]
    options: dict[str, Any] = {"frameon": False, "fontsize": SMALL, "handlelength": 3.5}
    handles = [*named.values()]
    panel_width, panel_height = _PANELS[_COLUMNS.get(len(axes), 3)]
    columns = int(len(free) * panel_width // width)
    if columns and math.ceil(len(texts) / columns) * _LEGEND_LINE < panel_height - 0.4:
        legend = free[0].legend(handles, texts, loc="upper left", ncols=columns, **options)
        legend.set_in_layout(False)  # it may reach over all free places
        return
    columns = max(1, int(figure.get_figwidth() // width))
    lines = math.ceil(len(texts) / columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * lines + 0.1)
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, **options)


def save_figure(figure: Figure, output: Path) -> Path:
    """Write a figure, make its folder, and return the path.

    It is written as PNG in any case, and as what `output` ends with besides.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(output.with_suffix(".png"), dpi=150)
    if output.suffix != ".png":
        with rc_context({"pdf.fonttype": 42}):  # journals refuse the fonts of the default, Type 3
            figure.savefig(output)
    return output
