"""Intervals of shares (right answers, flips, hallucinations): the one place for all of them, of 95 %.

A share of independent samples has Wilson's score interval, which keeps its level at small N and
near 0 and 1, where the resamples of a bootstrap are all alike (Wilson, 1927, Journal of the
American Statistical Association 22; Brown, Cai and DasGupta, 2001, Statistical Science 16).

Samples of one picture are not independent. N is then the number of samples that, drawn one by one,
would give the variance over pictures: N over the design effect (Korn and Graubard, 1998, Survey
Methodology 24). It is at most the number of samples, and at least (sum of w)^2 / (sum of w^2) of w
samples per picture, which is right where all samples of a picture say the same. This is taken at 0
and at 1, where nothing tells how alike they are. What a design effect has above 1 counts more where
few pictures say so: by the squared ratio of the quantiles of t and of the normal distribution.

The difference of two shares of the same samples has Tango's score interval (1998, Statistics in
Medicine 17), their ratio that of Tang, Tang and Chan (2003, Statistics in Medicine 22), each with
an N that is found likewise. So they have a width where no sample differs.

All hold the estimate. Of several samples of one picture there is no interval: its ends are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student  # type: ignore[import-untyped]

Floats = NDArray[np.float64]

_Z = NormalDist().inv_cdf(0.975)
_STEPS = 40  # of a bisection


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """A part of a whole, such as the right answers of all, from sums over pictures.

    Attributes:
        pictures: How many pictures have any of the whole.
        whole: Sum of w, what each of them has.
        part: Sum of p, how much of that is counted.
        squares: Sums of w^2, w p and p^2.
    """

    pictures: int
    whole: int
    part: int
    squares: tuple[int, int, int]

    @classmethod
    def alone(cls, part: int, whole: int) -> Share:
        """Return that of samples which have a picture each."""
        return cls(whole, whole, part, (whole, part, part))

    @classmethod
    def of(cls, pictures: ArrayLike, counted: ArrayLike) -> Share:
        """Return that of samples: (samples,) numbers of their pictures, and whether each is counted."""
        _, which = np.unique(np.asarray(pictures), return_inverse=True)
        whole = np.bincount(which)
        part = np.bincount(which, weights=np.asarray(counted)).astype(np.int64)
        squares = (whole**2).sum(), (whole * part).sum(), (part**2).sum()
        ww, wp, pp = map(int, squares)
        return cls(len(whole), int(whole.sum()), int(part.sum()), (ww, wp, pp))

    @property
    def value(self) -> float:
        """The part; NaN of nothing."""
        return self.part / self.whole if self.whole else math.nan

    @property
    def interval(self) -> Interval:
        """95 %, over pictures."""
        share, (ww, wp, pp) = self.value, self.squares
        between, within = pp - 2 * share * wp + share**2 * ww, self.part * (1 - share)
        n = effective_n(*map(np.float64, (self.pictures, self.whole, between, within, ww)))
        return Interval(*_wilson(np.asarray(share), n).tolist())


def wilson(share: float, n: float) -> Interval:
    """Return Wilson's interval of a share of n: all p with |share - p| <= z sqrt(p (1 - p) / n)."""
    return Interval(*_wilson(np.asarray(share), np.asarray(n)).tolist())


def share_interval(counted: Floats, pictures: NDArray[np.int64]) -> Floats:
    """Return the ends of shares, (2, numbers).

    Args:
        counted: (samples, numbers): 1 or 0, or NaN where a sample does not belong to a whole.
        pictures: (samples,), the number of the picture that each is about, from 0 on.
    """
    share = _mean(counted, ~np.isnan(counted))
    return _wilson(share, _effective_n(counted - share, pictures))


def share_difference_interval(ours: Floats, theirs: Floats, pictures: NDArray[np.int64]) -> Floats:
    """Return the ends of the differences of shares, (2, numbers): ours minus theirs, in samples that have both.

    Args:
        ours: (samples, numbers): 1, 0 or NaN.
        theirs: Likewise.
        pictures: (samples,), see `share_interval`.
    """
    differences = ours - theirs
    there = ~np.isnan(differences)
    value = _mean(differences, there)
    n = _effective_n(differences - value, pictures)
    more, less = (n * _mean(sign * differences > 0, there) for sign in (1, -1))

    def accepts(delta: Floats) -> NDArray[np.bool_]:
        linear, constant = (2 * n - more + less) * delta - more - less, -less * delta * (1 - delta)
        variance = n * (2 * _root(2 * n, linear, constant) + delta * (1 - delta))
        return _accepted(n * (value - delta), variance)

    return np.stack([_bisect(accepts, value, end) for end in (-1.0, 1.0)])


def share_ratio_interval(ours: Floats, theirs: Floats, pictures: NDArray[np.int64]) -> Floats:
    """Return the ends of the ratios of shares, (2, numbers): ours over theirs, in samples that have both.

    They are NaN where theirs is 0; the arguments are those of `share_difference_interval`.
    """
    there = ~np.isnan(ours + theirs)
    x, y = _mean(ours, there), _mean(theirs, there)
    value = np.divide(x, y, out=np.full_like(x, np.nan), where=y > 0)
    n = _effective_n(ours - value * theirs, pictures)
    either, less = n * _mean(ours + theirs > 0, there), n * _mean(theirs > ours, there)

    def accepts(scaled: Floats) -> NDArray[np.bool_]:
        ratio = scaled / (1 - scaled)
        linear, constant = n * y * ratio**2 - either - less, less * (1 - ratio) * either / n
        root = _root(n * (1 + ratio), linear, constant)
        return _accepted(n * (x - ratio * y), n * (1 + ratio) * root + either * (ratio - 1))

    scaled = value / (1 + value)  # from 0 to 1, whatever the ratio
    ends = np.stack([_bisect(accepts, scaled, end) for end in (0.0, 1.0)])
    return ends / (1 - ends)


def effective_n(pictures: Any, whole: Any, between: Any, within: Any, squares: Any) -> Floats:
    """Return how many samples with a picture each would say as much, an array or a number.

    Args:
        pictures: How many there are; NaN comes out where all of several samples are of one.
        whole: Number of samples.
        between: Sum of the squared deviations of the pictures' sums.
        within: Sum of the squared deviations of the samples.
        squares: Sum of the squared numbers of samples of the pictures.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = between * pictures / (pictures - 1) / (within * whole / (whole - 1))
        spread = (student.ppf(0.975, pictures - 1) / _Z) ** 2
        least = whole**2 / squares
        n = np.clip(whole / (1 + np.maximum(effect - 1, 0) * spread), least, whole)
    return np.where((pictures > 1) | (whole == 1), np.where(within > 0, n, least), np.nan)


def _effective_n(deviations: Floats, pictures: NDArray[np.int64]) -> Floats:
    """Return that of (samples, numbers) deviations, NaN where a sample has none."""
    there, filled = ~np.isnan(deviations), np.nan_to_num(deviations)
    sums = np.zeros((2, int(pictures.max(initial=-1)) + 1, deviations.shape[1]))
    for own, each in zip(sums, (there, filled), strict=True):
        np.add.at(own, pictures, each)
    squares, between = (sums**2).sum(axis=1)
    whole = there.sum(axis=0).astype(np.float64)
    return effective_n((sums[0] > 0).sum(axis=0), whole, between, (filled**2).sum(axis=0), squares)


def _wilson(share: Floats, n: Floats) -> Floats:
    """Return the ends, (2, numbers); but for rounding they lie between 0 and 1, around the share."""
    z2 = _Z**2 / n
    centre, reach = share + z2 / 2, np.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    low, high = (centre - reach) / (1 + z2), (centre + reach) / (1 + z2)
    return np.stack([np.clip(low, 0, share), np.clip(high, share, 1)])


def _mean(values: NDArray[Any], there: NDArray[np.bool_]) -> Floats:
    """Return the mean over samples of (samples, numbers) that are there; NaN of none."""
    sums, n = np.where(there, values, 0).sum(axis=0), there.sum(axis=0)
    means: Floats = np.divide(sums, n, out=np.full(len(n), np.nan), where=n > 0)
    return means


def _root(square: Floats, linear: Floats, constant: Floats) -> Floats:
    """Return the larger root of a quadratic equation, which has one."""
    larger: Floats = (np.sqrt(np.maximum(linear**2 - 4 * square * constant, 0)) - linear) / (2 * square)
    return larger


def _accepted(deviation: Floats, variance: Floats) -> NDArray[np.bool_]:
    """Return whether a score test at 5 % accepts."""
    accepted: NDArray[np.bool_] = deviation**2 <= _Z**2 * variance
    return accepted


def _bisect(accepts: Callable[[Floats], NDArray[np.bool_]], inside: Floats, end: float) -> Floats:
    """Return the last number between `inside`, which is accepted, and an end that is."""
    outside = np.where(np.isnan(inside), np.nan, end)
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        accepted = accepts(middle)
        inside, outside = np.where(accepted, middle, inside), np.where(accepted, outside, middle)
    return inside
