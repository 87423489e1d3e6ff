"""Whether two numbers of the same N things go together: correlations of few points, and from which N on they can tell.

The p-value is two-sided and that of a permutation test: the share of the orders of one of the two numbers in which the
correlation is at least as far from 0. All N! orders are counted where they are few, else 10,000 are drawn. So of N
points no Spearman correlation has a p-value below 2 / N!, that of the same or the opposite order; which N can decide
anything follows. The interval is that of a bootstrap over the points (2.5 and 97.5 % quantiles), from that N on. Points
that are all in the same or the opposite order, or on a line, have none: so has every draw of them, which says nothing
of how far others would be from it. Of 8 points or fewer those of Pearson's correlation are too short: they hold the
truth in 83 to 94 of 100 cases of normal numbers.

Both take the points as independent draws. Where several share an origin, the means of each origin are (`group_means`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata  # type: ignore[import-untyped]

from lightning_mllm.statistics.decisions import ALPHA
from lightning_mllm.statistics.seeds_and_samples import Floats

Method = Literal["pearson", "spearman"]

_MOST_ORDERS = 50_000  # so all of up to 8 points are counted
_DRAWN_ORDERS = 10_000
_ENDS = (0.025, 0.975)
_NEAR = 1e-12


@dataclass(frozen=True)
class Correlation:
    """A correlation.

    Attributes:
        value: From -1 to 1; NaN where one of the numbers is the same for all points.
        low: Of its 95 % interval; NaN where N is too small for one, or the points are in the same or opposite order.
        high: Likewise.
        p: Two-sided p-value; NaN without a value.
        n: Number of points.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


def correlate(first: Floats, second: Floats, method: Method, resamples: int = 2000, seed: int = 0) -> Correlation:
    """Return the correlation of the points that have both numbers.

    Args:
        first: (points,), NaN where a point has no number.
        second: (points,), likewise.
        method: Of the numbers themselves, or of their ranks, ties averaged.
        resamples: Of the bootstrap.
        seed: Of all drawing.
    """
    there = ~(np.isnan(first) | np.isnan(second))
    points = np.stack([first[there], second[there]])
    n = points.shape[1]
    if n < 2 or (np.ptp(points, axis=1) == 0).any():
        return Correlation(math.nan, math.nan, math.nan, math.nan, n)
    generator = np.random.default_rng(seed)
    ours, theirs = _standard(points, method)
    observed = float(ours @ theirs)
    orders, extra = _orders(n, generator)
    at_least = int((np.abs(theirs[orders] @ ours) >= abs(observed) - _NEAR).sum())
    p = (extra + at_least) / (extra + len(orders))
    low = high = math.nan
    if n >= smallest_n(1) and abs(observed) < 1 - _NEAR:
        drawn = points[:, generator.integers(0, n, size=(resamples, n))]
        drawn = drawn[:, (np.ptp(drawn, axis=2) > 0).all(axis=0)]  # of a point that is drawn n times there is none
        low, high = (float(end) for end in np.quantile(_standard(drawn, method).prod(axis=0).sum(axis=1), _ENDS))
    return Correlation(observed, low, high, p, n)


def group_means(first: Floats, second: Floats, groups: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the means of each group, of its points that have both numbers; groups without one are left out."""
    there = ~(np.isnan(first) | np.isnan(second))
    names = np.array(groups)[there]
    members = [names == name for name in dict.fromkeys(names.tolist())]
    ours, theirs = (np.array([values[there][own].mean() for own in members]) for values in (first, second))
    return ours, theirs


def smallest_p(n: int) -> float:
    """Return the p-value of N points that both numbers put in the same order."""
    return min(1.0, 2 / math.factorial(n))


def smallest_n(tests: int) -> int:
    """Return from how many points on a correlation can be significant, if it is one of several that are tested."""
    return next(n for n in itertools.count(2) if smallest_p(n) <= ALPHA / tests)


def _orders(n: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """Return orders of N points, (orders, n), and how many more there are that are not among them: the observed one."""
    if math.factorial(n) <= _MOST_ORDERS:
        return _all_orders(n), 0
    return generator.permuted(np.broadcast_to(np.arange(n), (_DRAWN_ORDERS, n)).copy(), axis=1), 1


@cache
def _all_orders(n: int) -> NDArray[np.int64]:
    return np.array(list(itertools.permutations(range(n))))


def _standard(values: Floats, method: Method) -> Floats:
    """Return (..., points) numbers, or their ranks, with mean 0 and length 1."""
    scaled = rankdata(values, axis=-1) if method == "spearman" else values
    centred = scaled - scaled.mean(axis=-1, keepdims=True)
    standard: Floats = centred / np.linalg.norm(centred, axis=-1, keepdims=True)
    return standard
