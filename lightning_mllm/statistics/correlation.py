"""Whether two numbers of the same N points go together: correlations of few points.

The p-value is two-sided, from a permutation test: the share of the orders of one of the two numbers
in which the correlation is at least as far from 0. All N! orders are counted where they are few;
else 10,000 are drawn. So the Spearman correlation of N points has no p-value below 2 / N!, that of
the same or the opposite order. This decides from which N on a claim can be decided
(`smallest_correlation_n`).

From that N on there is an interval, by a bootstrap over the points. Points that are all in the same
or the opposite order, or on a line, have none: every resample of them is so too, which does not say
how far other points would be from it. With 8 points or fewer the intervals of Pearson's correlation
are too short: they hold the truth in 83 to 94 of 100 cases of normal numbers.

Both the test and the interval assume that the points are independent draws. Where several share an
origin, the means of the origins are independent (`correlated_group_means`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import permutation_test, rankdata  # type: ignore[import-untyped]

from lightning_mllm.statistics.interval import ALPHA, NO_INTERVAL, Interval, quantile_interval
from lightning_mllm.statistics.missing import Floats

Method = Literal["pearson", "spearman"]

_MOST_ORDERS = 50_000  # so all orders of up to 8 points are counted
_DRAWN_ORDERS = 10_000
_MOST_ORDERED = 20_000_000  # numbers that are in memory at once
_NEAR = 1e-12


@dataclass(frozen=True)
class Correlation:
    """A correlation.

    Attributes:
        value: From -1 to 1; NaN where one of the numbers is the same for all points.
        interval: The 95 % interval; its ends are NaN where N is too small, or the points are all in
            the same or the opposite order.
        p: Two-sided p-value; NaN without a value.
        n: Number of points that have both numbers.
    """

    value: float
    interval: Interval
    p: float
    n: int


def correlate(
    first: Floats, second: Floats, method: Method, resamples: int = 2000, seed: int = 0
) -> Correlation:
    """Return the correlation of the points that have both numbers.

    Args:
        first: (points,), NaN where a point has no number.
        second: (points,), NaN where a point has no number.
        method: `pearson` correlates the numbers themselves, `spearman` their ranks, ties averaged.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the drawn orders and of the bootstrap.
    """
    there = ~(np.isnan(first) | np.isnan(second))
    points = np.stack([first[there], second[there]])
    n = points.shape[1]
    if n < 2 or (np.ptp(points, axis=1) == 0).any():
        return Correlation(math.nan, NO_INTERVAL, math.nan, n)
    generator = np.random.default_rng(seed)
    ours, theirs = _standardise(points, method)
    value = float(ours @ theirs)
    p = _permutation_p(ours, theirs, generator)
    interval = NO_INTERVAL
    if n >= smallest_correlation_n(1) and abs(value) < 1 - _NEAR:
        drawn = points[:, generator.integers(0, n, size=(resamples, n))]
        varied = (np.ptp(drawn, axis=2) > 0).all(axis=0)  # not one point n times
        standard = _standardise(drawn[:, varied], method)
        interval = quantile_interval(standard.prod(axis=0).sum(axis=1))
    return Correlation(value, interval, p, n)


def correlated_group_means(
    first: Floats, second: Floats, groups: Sequence[str]
) -> tuple[Floats, Floats]:
    """Return the means of each group over its points that have both numbers.

    Groups without such a point are left out.
    """
    there = ~(np.isnan(first) | np.isnan(second))
    names = np.array(groups)[there]
    ours, theirs = [], []
    for name in dict.fromkeys(names.tolist()):
        own = names == name
        ours.append(first[there][own].mean())
        theirs.append(second[there][own].mean())
    return np.array(ours), np.array(theirs)


def smallest_correlation_p(n: int) -> float:
    """Return the p-value of N points that both numbers put in the same order."""
    return min(1.0, 2 / math.factorial(n))


def smallest_correlation_n(tests: int) -> int:
    """Return from how many points on one of several tested correlations can be significant."""
    return next(n for n in itertools.count(2) if smallest_correlation_p(n) <= ALPHA / tests)


def _permutation_p(ours: Floats, theirs: Floats, generator: np.random.Generator) -> float:
    """Return the share of the orders of `theirs` in which the correlation is as far from 0."""

    def distance(orders: Floats, axis: int) -> Floats:
        far = np.abs((orders * ours).sum(axis=axis))
        rounded: Floats = far.round(12)  # what differs by rounding is a tie, also near 0
        return rounded

    few = math.factorial(len(ours)) <= _MOST_ORDERS
    found = permutation_test(
        (theirs,),
        distance,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=_MOST_ORDERS if few else _DRAWN_ORDERS,
        batch=max(1, _MOST_ORDERED // len(ours)),
        vectorized=True,
        rng=generator,
    )
    return float(found.pvalue)


def _standardise(values: Floats, method: Method) -> Floats:
    """Return (..., points) numbers, or their ranks, with mean 0 and length 1."""
    scaled = rankdata(values, axis=-1) if method == "spearman" else values
    centred = scaled - scaled.mean(axis=-1, keepdims=True)
    standard: Floats = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    return standard
