"""What a reader looks at first: how many answers the vector turns, beside random ones."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.statistics.interval import N
from lightning_mllm.statistics.missing import Floats

_ROWS = 24
_CAPTION = (
    "Questions (%) of which the answer begins as the target's, or still as the source's, and "
    "change of the logits' difference D (target - source); beside random vectors of equal norm."
)
_SHIFT_CAPTION = (
    "Questions (%) answered right before fine-tuning, after it, and before it with the shift; how "
    "much of the gain that gives back; beside random vectors of equal norm."
)


def make_steering_headline(values: Floats, coords: Mapping[str, tuple[Any, ...]]) -> Headline:
    """Return the main numbers of a sweep between classes.

    Args:
        values: (steers, layers, scales, measures, 4), the statistics.
        coords: Coordinates of these axes.
    """
    shown = {
        "target_percent": "target",
        "source_percent": "source",
        "difference_change": "change of D",
        "random_target_percent": "random: target",
        "random_difference_change": "random: D",
    }
    return _make_headline(values, coords, shown, _CAPTION)


def make_shift_headline(values: Floats, coords: Mapping[str, tuple[Any, ...]]) -> Headline:
    """Return the main numbers of a sweep of shifts; arguments as above."""
    shown = {
        "before_percent": "before",
        "after_percent": "after",
        "shifted_percent": "shifted",
        "given_back_percent": "gain given back",
        "random_given_back_percent": "random: given back",
    }
    return _make_headline(values, coords, shown, _SHIFT_CAPTION)


def _make_headline(
    values: Floats, coords: Mapping[str, tuple[Any, ...]], shown: Mapping[str, str], caption: str
) -> Headline:
    rows = []
    axes = ("steer", "layers", "scale")
    places = product(*(range(len(coords[axis])) for axis in axes)) if values.size else ()
    for place in places:
        own = values[place]
        where = [coords[axis][number] for axis, number in zip(axes, place, strict=True)]
        if own[0, N]:
            cells = [format_estimate(own[coords["measure"].index(each)]) for each in shown]
            rows.append((*map(str, where), *cells, format_count(own[0])))
    if len(rows) > _ROWS:
        caption += f" {_ROWS} of {len(rows)} rows; summary.csv has all."
    return Headline(caption, (*axes, *shown.values(), "N"), tuple(rows[:_ROWS]))
