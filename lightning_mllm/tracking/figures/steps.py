"""Numbers with intervals over the steps of a run: lines for validation, markers for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np

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


class StepNumber(NamedTuple):
    """A number that was measured after some steps, with its interval if there is one."""

    step: int
    value: float
    low_95: float = nan
    high_95: float = nan
    of_test: bool = False


StepLines = Mapping[str, Sequence[StepNumber]]  # name of a line -> its numbers


@guard_figure
def draw_step_curves(
    panels: Mapping[str, StepLines],
    output: Path,
    *,
    title: str,
    ylabel: str,
    chance: Mapping[str, float] | None = None,
) -> Path:
    """Draw shares from 0 to 1, a panel per title.

    Args:
        panels: Title of a panel -> its lines.
        output: The file to write.
        title: The title above all panels.
        ylabel: Label of the y-axis.
        chance: Title of a panel -> what chance gives there.

    Returns:
        `output`.
    """
    names: dict[str, None] = {}
    for lines in panels.values():
        names |= dict.fromkeys(lines)
    styles = choose_figure_styles(list(names))
    figure, axes = make_figure_panels(list(panels), same_height=True)
    for axis, (panel, lines) in zip(axes, panels.items(), strict=True):
        for name, numbers in lines.items():
            own = sorted(each for each in numbers if not each.of_test)
            values = np.array([each[1:4] for each in own]).reshape(-1, 3)
            draw_figure_curve(axis, [each.step for each in own], values, name, styles[name])
            for number in numbers:
                if number.of_test:
                    colour, marker = styles[name].colour, styles[name].marker
                    label = "" if own else name
                    at, ends = number.step, (number.low_95, number.high_95)
                    axis.plot(at, number.value, marker, color=colour, mfc="none", ms=9, label=label)
                    axis.vlines(at, *ends, color=colour, linewidth=1)
        if chance and panel in chance:
            draw_figure_chance(axis, chance[panel])
        axis.set_ylim(0, 1.02)
        finish_figure_axis(axis)
    label_figure_panels(axes, "Optimiser step (0: before training)", ylabel)
    title_figure(figure, title)
    place_figure_legend(axes)
    return save_figure(figure, output)
