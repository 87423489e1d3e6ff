"""The curves of several runs over each other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from lightning_mllm.tracking.figures.figure import (
    finish_figure_axis,
    make_figure_panels,
    place_figure_legend,
    save_figure,
)
from lightning_mllm.tracking.figures.guard import guard_figure
from lightning_mllm.tracking.figures.style import choose_figure_styles

_SCORES = {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}


@guard_figure
def draw_compared_curves(
    curves: Mapping[str, Mapping[str, Mapping[int, float]]], output: Path
) -> Path:
    """Draw metrics of the validation split over the optimiser steps: a panel each, a line per run.

    Args:
        curves: Name of the metric, as it is logged -> name of the run -> step -> value.
        output: The file to write.

    Returns:
        `output`.
    """
    figure, axes = make_figure_panels([name_compared_metric(metric) for metric in curves])
    styles = choose_figure_styles(list(dict.fromkeys(chain.from_iterable(curves.values()))))
    for axis, (metric, lines) in zip(axes, curves.items(), strict=True):
        for name, points in lines.items():
            steps = sorted(points)
            values = [points[step] for step in steps]
            axis.plot(steps, values, label=name, **styles[name].line())
        axis.set_xlabel("Optimiser step")
        if score := _SCORES.get(metric.rpartition("/")[2]):
            axis.set(ylabel=f"{score} (0-1)", ylim=(0, 1.02))
        else:
            axis.set_ylabel("Cross-entropy (nats per answer token)")
            axis.set_ylim(bottom=0)
        finish_figure_axis(axis)
    place_figure_legend(axes)
    return save_figure(figure, output)


def name_compared_metric(metric: str) -> str:
    """Return a metric's name in words, e.g. `Accuracy, generation, validation`."""
    kind, *place, last = metric.split("/")
    title = _SCORES.get(last, last.capitalize())
    if kind == "probe":  # probe/val/<point>/<probe>/<score>
        return f"Probes, {title}, {', '.join(place[1:])}, validation"
    return ", ".join((title, *place, "validation"))
