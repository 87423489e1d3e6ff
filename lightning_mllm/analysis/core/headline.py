"""The main numbers of a result: a small table of what a reader would look at first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_mllm.statistics.interval import HIGH, LOW, VALUE, N
from lightning_mllm.statistics.missing import Floats


@dataclass(frozen=True)
class Headline:
    """A small table of text, which fits a terminal.

    Attributes:
        caption: What the numbers are, in a sentence.
        columns: Names of the columns.
        rows: A text for each column.
    """

    caption: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def format_estimate(statistics: Floats, decimals: int | None = None) -> str:
    """Return a number with its interval, e.g. `-61.2 [-65.0, -57.4]`; a dash for none.

    Args:
        statistics: (4,), in the order of `STATISTICS`.
        decimals: Number of decimals; by default as many as the size of the number asks for.
    """
    value, low, high = (float(statistics[index]) for index in (VALUE, LOW, HIGH))
    if not math.isfinite(value):
        return "-"
    size = max(abs(each) for each in (value, low, high) if math.isfinite(each))
    if decimals is None:
        decimals = 1 if size >= 10 else 2 if size >= 0.1 else 3
    text = f"{value:.{decimals}f}"
    has_interval = math.isfinite(low) and math.isfinite(high)
    return f"{text} [{low:.{decimals}f}, {high:.{decimals}f}]" if has_interval else text


def format_count(statistics: Floats) -> str:
    """Return of how many samples a number is, from its statistics, (4,)."""
    return f"{statistics[N]:.0f}" if math.isfinite(float(statistics[N])) else "-"


def make_layers_headline(
    values: Floats, measures: Sequence[str], layers: Sequence[int], caption: str
) -> Headline:
    """Return measures at the first and at the last layer.

    Args:
        values: (measures, layers, 4), the statistics.
        measures: Names of the measures.
        layers: Numbers of the layers.
        caption: What the numbers are.
    """
    rows = []
    for measure, own in zip(measures, values, strict=True):
        rows.append((measure, format_estimate(own[0]), format_estimate(own[-1])))
    columns = ("measure", f"layer {layers[0]}", f"layer {layers[-1]}")
    return Headline(caption, columns, tuple(rows))
