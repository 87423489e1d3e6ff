"""The main numbers of analyses that are repeated while a model is trained, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields

import numpy as np

from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.statistics.interval import STATISTICS, VALUE


@dataclass(frozen=True)
class AnalysisCurveRow:
    """A number of an analysis at a step.

    Attributes:
        step: Optimiser steps taken.
        panel: Coordinate of the result's first axis, e.g. the kind of question.
        line: Name of the line in the plot of one step.
        place: Where it is on that line, e.g. the layer.
        value: The number.
        low_95: Lower end of its 95 % interval.
        high_95: Upper end of its 95 % interval.
        n: Number of samples that it is computed from.
    """

    step: int
    panel: str
    line: str
    place: str
    value: float
    low_95: float
    high_95: float
    n: int

    def row(self) -> tuple[object, ...]:
        """Return the row of the CSV file."""
        return astuple(self)


COLUMNS = tuple(field.name for field in fields(AnalysisCurveRow))


def find_curve_plot(result: AnalysisResult) -> ResultPlot | None:
    """Return the plot whose numbers are the main ones: the first, of intervals."""
    if result.coords[result.axes[-1]] != STATISTICS:
        return None
    return next(iter(result.plots), None)


def make_curve_rows(
    result: AnalysisResult, plot: ResultPlot, step: int
) -> Iterator[AnalysisCurveRow]:
    """Yield the numbers of the plot's first panel.

    Args:
        result: What the analysis found.
        plot: One of its plots.
        step: Optimiser steps taken.
    """
    if not result.values.size:
        return
    values = result.plot_values(plot)[0]
    panel = str(result.coords[result.axes[0]][0])
    for line, label in enumerate(plot.shown.values()):
        for place, name in enumerate(result.coords[plot.x]):
            value, low, high, n = values[line, place].tolist()
            if np.isfinite(values[line, place, VALUE]):
                yield AnalysisCurveRow(step, panel, label, str(name), value, low, high, int(n))


def replace_curve_step(
    rows: Iterable[AnalysisCurveRow], new: Iterable[AnalysisCurveRow]
) -> list[AnalysisCurveRow]:
    """Return rows with those of a step instead of earlier ones of the same step."""
    new = list(new)
    steps = {row.step for row in new}
    return [*(row for row in rows if row.step not in steps), *new]
