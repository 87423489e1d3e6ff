"""Pictures of how the main numbers of an analysis change while the model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_mllm.analysis.core.result import ResultPlot
from lightning_mllm.tracking.analysis_curves import AnalysisCurveRow
from lightning_mllm.tracking.figures.curves import draw_figure_chance, draw_figure_curve
from lightning_mllm.tracking.figures.figure import (
    finish_figure_axis,
    label_figure_panels,
    make_figure_panels,
    place_figure_legend,
    save_figure,
    title_figure,
)
from lightning_mllm.tracking.figures.guard import guard_figure
from lightning_mllm.tracking.figures.style import choose_figure_styles


@guard_figure
def draw_analysis_training(
    rows: Sequence[AnalysisCurveRow], plot: ResultPlot, output: Path
) -> Path:
    """Draw the numbers over the steps: a panel per line of the plot, a curve per place.

    Args:
        rows: The numbers of all steps.
        plot: How the numbers of one step are drawn.
        output: The file to write.

    Returns:
        `output`.
    """
    panels = list(dict.fromkeys(row.line for row in rows))
    places = list(dict.fromkeys(row.place for row in rows))
    styles = choose_figure_styles([_name_place(plot, place) for place in places])
    figure, axes = make_figure_panels(panels, same_height=True)
    for axis, panel in zip(axes, panels, strict=True):
        for place in places:
            own = [row for row in rows if (row.line, row.place) == (panel, place)]
            own.sort(key=lambda row: row.step)
            values = np.array([[row.value, row.low_95, row.high_95] for row in own])
            name = _name_place(plot, place)
            if own:
                draw_figure_curve(axis, [row.step for row in own], values, name, styles[name])
        if plot.chance is not None:
            draw_figure_chance(axis, plot.chance)
        finish_figure_axis(axis)
    label_figure_panels(axes, "Optimiser step (0: before training)", plot.label)
    title_figure(
        figure,
        f"{plot.title}, {rows[0].panel}, while the model is trained; "
        f"bands: 95 % intervals over {plot.over}",
    )
    place_figure_legend(axes)
    return save_figure(figure, output)


def _name_place(plot: ResultPlot, place: str) -> str:
    return f"{plot.x} {place}" if place[:1].isdigit() else place
