"""What all figures share: colours, axes, panels, texts, and the file that they are written to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#6B6B6B"
_COLUMNS = 3  # of panels


def shorten_figure_text(text: str, width: int) -> str:
    """Return one line of a text, in characters that the font has; models answer with any."""
    drawable = get_font(findfont(FontProperties())).get_charmap()
    line = " ".join(text.split())
    line = "".join(each if ord(each) in drawable else "\u25a1" for each in line)
    return line if len(line) <= width else line[: width - 3].rstrip() + "..."


def finish_figure_axis(axis: Axes) -> None:
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


def make_figure_panels(
    titles: Sequence[str], *, same_height: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure with a panel per title, a few to a row.

    Args:
        titles: Titles of the panels.
        same_height: Whether the panels share the range of the y-axis, so that they can be compared.
    """
    columns = min(_COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    size = (5 * columns, 4.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=same_height).ravel().tolist()
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    return figure, axes[: len(titles)]
