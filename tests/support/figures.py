"""Figures as they are drawn, and what they must not do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

SAVE = Figure.savefig  # before tests are run, which replace it


@contextmanager
def drawn_figures() -> Iterator[None]:
    """Draw figures within a fixture; other tests than those of figures write a pixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", SAVE)
        yield


def keep_figures(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[Figure]:
    """Let the functions of a module keep their figures in a list instead of writing them."""
    figures: list[Figure] = []

    def keep(figure: Figure, output: Path) -> Path:
        figures.append(figure)
        return output

    monkeypatch.setattr(module, "save_figure", keep)
    return figures


def legends(figure: Figure) -> Iterator[Legend]:
    """Yield the legends of a figure and of its panels."""
    yield from figure.legends
    for axis in figure.axes:
        legend = axis.get_legend()
        if legend is not None:
            yield legend


def legends_outside(figure: Figure, axes: list[Axes]) -> bool:
    """Return whether no legend of a figure that is laid out reaches into a panel."""
    return not any(
        legend.get_window_extent().overlaps(axis.get_window_extent())
        for legend in legends(figure)
        for axis in axes
    )


def check_figure_reaches_nowhere_outside(figure: Figure) -> None:
    """Check that no text, nor anything else, is cut at the edges of the picture."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    tolerance = 0.02 * figure.dpi
    drawn = [figure.get_tightbbox().transformed(figure.dpi_scale_trans)]
    drawn += [legend.get_window_extent() for legend in legends(figure)]
    for box in drawn:
        assert box.x0 >= -tolerance and box.y0 >= -tolerance, box
        assert box.x1 <= figure.bbox.x1 + tolerance and box.y1 <= figure.bbox.y1 + tolerance, box


def curve_looks(axis: Axes) -> list[tuple[Any, ...]]:
    """Return colour, dash and marker of each curve that has a name."""
    looks = []
    for line in axis.lines:
        if not str(line.get_label()).startswith("_"):
            looks.append((line.get_color(), str(line._dash_pattern), line.get_marker()))  # type: ignore[attr-defined]
    return looks
