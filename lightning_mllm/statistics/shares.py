"""Intervals of shares (right answers, flips, hallucinations): the one place for all of them.

A share of independent samples has Wilson's score interval, which keeps its level at small N and
near 0 and 1, where the resamples of a bootstrap are all alike (Wilson, 1927, Journal of the
American Statistical Association 22; Brown, Cai and DasGupta, 2001, Statistical Science 16).

Samples of one picture are not independent. N is then the number of samples that, drawn one by one,
would give the variance over pictures: N over the design effect (Korn and Graubard, 1998, Survey
Methodology 24). It is at most the number of samples, and at least (sum of w)^2 / (sum of w^2) of w
samples per picture, which is right where all samples of a picture say the same. The least N is used
for shares of 0 and 1, where nothing tells how alike the samples of a picture are. The part of a
design effect above 1 is multiplied where few pictures support it: by the squared ratio of the
quantiles of the t and of the normal distribution.

The difference of two shares of the same samples has Tango's score interval (1998, Statistics in
Medicine 17), their ratio that of Tang, Tang and Chan (2003, Statistics in Medicine 22), each with
an N that is found in the same way. So they have a width where no sample differs.

All intervals hold the estimate. Several samples of a single picture have no interval: its ends are
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_mllm.statistics.interval import NORMAL_QUANTILE, Interval, interval_t_quantile
from lightning_mllm.statistics.missing import (
    Floats,
    Integers,
    divide_unless_missing,
    mean_unless_missing,
)

_STEPS = 40  # of a bisection


@dataclass(frozen=True)
class Share:
    """A part of a whole, such as the right answers of all answers, from sums over pictures.

    Attributes:
        pictures: How many pictures have any sample.
        whole: Sum of w, how many samples each picture has.
        part: Sum of p, how many of these are counted.
        squares: Sums of w^2, w p and p^2.
    """

    pictures: int
    whole: int
    part: int
    squares: tuple[int, int, int]

    @classmethod
    def alone(cls, part: int, whole: int) -> Share:
        """Return the share of samples that have a picture each."""
        return cls(whole, whole, part, (whole, part, part))

    @classmethod
    def of(cls, pictures: ArrayLike, counted: ArrayLike) -> Share:
        """Return the share of samples.

        Args:
            pictures: (samples,), what each is about.
            counted: (samples,), 1 for a sample that is counted, else 0.
        """
        _, which = np.unique(np.asarray(pictures), return_inverse=True)
        whole = np.bincount(which)
        part = np.bincount(which, weights=np.asarray(counted)).astype(np.int64)
        squares = (int((whole**2).sum()), int((whole * part).sum()), int((part**2).sum()))
        return cls(len(whole), int(whole.sum()), int(part.sum()), squares)

    @property
    def value(self) -> float:
        """The part over the whole; NaN where the whole is 0."""
        return self.part / self.whole if self.whole else math.nan

    @property
    def interval(self) -> Interval:
        """The 95 % interval, over pictures."""
        share = self.value
        squared_wholes, products, squared_parts = self.squares
        n = effective_n_of_shares(
            pictures=np.float64(self.pictures),
            whole=np.float64(self.whole),
            between=np.float64(squared_parts - 2 * share * products + share**2 * squared_wholes),
            within=np.float64(self.part * (1 - share)),
            squares=np.float64(squared_wholes),
        )
        return Interval(*_wilson(np.asarray(share), n).tolist())


def wilson_share_interval(share: float, n: float) -> Interval:
    """Return Wilson's interval of a share of n: all p with |share - p| <= z sqrt(p (1 - p) / n)."""
    return Interval(*_wilson(np.asarray(share), np.asarray(n)).tolist())


def share_interval(counted: Floats, pictures: Integers) -> Floats:
    """Return the ends of shares, (2, numbers).

    Args:
        counted: (samples, numbers): 1 or 0, or NaN where a sample does not belong to a whole.
        pictures: (samples,), the number of the picture that each is about, from 0 on.
    """
    share = mean_unless_missing(counted, ~np.isnan(counted))
    return _wilson(share, _effective_n(counted - share, pictures))


def share_difference_interval(ours: Floats, theirs: Floats, pictures: Integers) -> Floats:
    """Return the ends of the differences of shares, (2, numbers): ours minus theirs.

    Only samples that have both numbers count.

    Args:
        ours: (samples, numbers): 1, 0 or NaN.
        theirs: (samples, numbers): 1, 0 or NaN.
        pictures: (samples,), see `share_interval`.
    """
    differences = ours - theirs
    there = ~np.isnan(differences)
    value = mean_unless_missing(differences, there)
    n = _effective_n(differences - value, pictures)
    more = n * mean_unless_missing(differences > 0, there)
    less = n * mean_unless_missing(-differences > 0, there)

    def accepts(delta: Floats) -> NDArray[np.bool_]:
        linear = (2 * n - more + less) * delta - more - less
        constant = -less * delta * (1 - delta)
        variance = n * (2 * _root(2 * n, linear, constant) + delta * (1 - delta))
        return _accepted(n * (value - delta), variance)

    return np.stack([_bisect(accepts, value, end) for end in (-1.0, 1.0)])


def share_ratio_interval(ours: Floats, theirs: Floats, pictures: Integers) -> Floats:
    """Return the ends of the ratios of shares, (2, numbers): ours over theirs.

    Only samples that have both numbers count. The ends are NaN where the share of theirs is 0.

    Args:
        ours: (samples, numbers): 1, 0 or NaN.
        theirs: (samples, numbers): 1, 0 or NaN.
        pictures: (samples,), see `share_interval`.
    """
    there = ~np.isnan(ours + theirs)
    x, y = mean_unless_missing(ours, there), mean_unless_missing(theirs, there)
    value = divide_unless_missing(x, y)
    n = _effective_n(ours - value * theirs, pictures)
    either = n * mean_unless_missing(ours + theirs > 0, there)
    less = n * mean_unless_missing(theirs > ours, there)

    def accepts(scaled: Floats) -> NDArray[np.bool_]:
        ratio = scaled / (1 - scaled)
        linear = n * y * ratio**2 - either - less
        constant = less * (1 - ratio) * either / n
        root = _root(n * (1 + ratio), linear, constant)
        return _accepted(n * (x - ratio * y), n * (1 + ratio) * root + either * (ratio - 1))

    scaled = value / (1 + value)  # from 0 to 1, whatever the ratio
    ends = np.stack([_bisect(accepts, scaled, end) for end in (0.0, 1.0)])
    return ends / (1 - ends)


def effective_n_of_shares(
    pictures: Any, whole: Any, between: Any, within: Any, squares: Any
) -> Floats:
    """Return how many samples with a picture each would say as much: an array or a number.

    It is NaN where several samples are all of one picture.

    Args:
        pictures: Number of pictures.
        whole: Number of samples.
        between: Sum of the squared deviations of the pictures' sums.
        within: Sum of the squared deviations of the samples.
        squares: Sum of the squared numbers of samples of the pictures.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = between * pictures / (pictures - 1) / (within * whole / (whole - 1))
        spread = (interval_t_quantile(pictures - 1) / NORMAL_QUANTILE) ** 2
        least = whole**2 / squares
        n = np.clip(whole / (1 + np.maximum(effect - 1, 0) * spread), least, whole)
    return np.where((pictures > 1) | (whole == 1), np.where(within > 0, n, least), np.nan)


def _effective_n(deviations: Floats, pictures: Integers) -> Floats:
    """Return `effective_n_of_shares` of (samples, numbers) deviations; NaN where one is missing."""
    there, filled = ~np.isnan(deviations), np.nan_to_num(deviations)
    counts = np.zeros((int(pictures.max(initial=-1)) + 1, deviations.shape[1]))
    sums = np.zeros_like(counts)
    np.add.at(counts, pictures, there)
    np.add.at(sums, pictures, filled)
    return effective_n_of_shares(
        pictures=(counts > 0).sum(axis=0),
        whole=there.sum(axis=0).astype(np.float64),
        between=(sums**2).sum(axis=0),
        within=(filled**2).sum(axis=0),
        squares=(counts**2).sum(axis=0),
    )


def _wilson(share: Floats, n: Floats) -> Floats:
    """Return the ends, (2, numbers), clipped against rounding to 0, 1 and the share."""
    z2 = NORMAL_QUANTILE**2 / n
    centre, reach = share + z2 / 2, np.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    low, high = (centre - reach) / (1 + z2), (centre + reach) / (1 + z2)
    return np.stack([np.clip(low, 0, share), np.clip(high, share, 1)])


def _root(square: Floats, linear: Floats, constant: Floats) -> Floats:
    """Return the larger root of a quadratic equation."""
    discriminant = np.maximum(linear**2 - 4 * square * constant, 0)
    larger: Floats = (np.sqrt(discriminant) - linear) / (2 * square)
    return larger


def _accepted(deviation: Floats, variance: Floats) -> NDArray[np.bool_]:
    """Return whether a score test at 5 % accepts."""
    accepted: NDArray[np.bool_] = deviation**2 <= NORMAL_QUANTILE**2 * variance
    return accepted


def _bisect(accepts: Callable[[Floats], NDArray[np.bool_]], inside: Floats, end: float) -> Floats:
    """Return the last accepted number between `inside`, which is accepted, and an end."""
    outside = np.where(np.isnan(inside), np.nan, end)
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        accepted = accepts(middle)
        inside = np.where(accepted, middle, inside)
        outside = np.where(accepted, outside, middle)
    return inside
