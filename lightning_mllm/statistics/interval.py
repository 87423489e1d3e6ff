"""The type of an interval, the one level of confidence, and the names of what is reported.

Every interval of the package is a 95 % interval, and every test that decides a claim is done at 5
%. The constructions differ, and each has a module of its own: see the table of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student  # type: ignore[import-untyped]

from lightning_mllm.statistics.missing import Floats, mean_unless_missing

ALPHA = 0.05  # how often an interval may miss the truth, and a test reject it
QUANTILES = (ALPHA / 2, 1 - ALPHA / 2)
NORMAL_QUANTILE = NormalDist().inv_cdf(QUANTILES[1])

STATISTICS = ("value", "low_95", "high_95", "n")  # the last axis of a result that has intervals
VALUE = STATISTICS.index("value")
LOW = STATISTICS.index("low_95")
HIGH = STATISTICS.index("high_95")
ENDS = slice(LOW, HIGH + 1)
N = STATISTICS.index("n")


class Interval(NamedTuple):
    """A 95 % interval; its ends are NaN where nothing can be said."""

    low: float
    high: float


NO_INTERVAL = Interval(math.nan, math.nan)


def interval_t_quantile(freedom: Any) -> Any:
    """Return the upper 97.5 % quantile of a t distribution, of a number or an array."""
    return student.ppf(QUANTILES[1], freedom)


def quantile_interval(resampled: Floats) -> Interval:
    """Return the interval of (resamples,) numbers: their 2.5 and 97.5 % quantiles."""
    low, high = np.quantile(resampled, QUANTILES)
    return Interval(float(low), float(high))


def stack_interval(value: Floats, ends: Floats, n: Any) -> Floats:
    """Return the statistics of numbers, (..., 4), in the order of `STATISTICS`.

    Args:
        value: (...), the numbers.
        ends: (2, ...), the ends of their intervals.
        n: (...), how many samples each is made of.
    """
    return np.stack([value, *ends, n], axis=-1)


def mean_interval(values: Floats) -> tuple[Floats, Floats]:
    """Return means over the last axis, and the ends of their t intervals.

    Args:
        values: (..., numbers), independent of each other; NaN where there is none.

    Returns:
        (...) means and (2, ...) ends; the ends are NaN where there are fewer than two numbers.
    """
    there = ~np.isnan(values)
    mean, count = mean_unless_missing(values, there, -1), there.sum(axis=-1)
    squares = (values - mean[..., None]) ** 2
    several = count > 1
    freedom = np.where(several, count - 1, 1)
    reach = interval_t_quantile(freedom) * np.sqrt(
        mean_unless_missing(squares, there, -1) / freedom
    )
    reach = np.where(several, reach, np.nan)
    return mean, np.stack([mean - reach, mean + reach])


def missing_interval(coords: Mapping[str, Sequence[Any]]) -> Floats:
    """Return statistics without a number at each place: NaN, with an N of 0.

    Args:
        coords: Axis -> its coordinates; the last axis is that of `STATISTICS`.
    """
    values = np.full(tuple(map(len, coords.values())), np.nan)
    values[..., N] = 0
    return values
