"""From numbers per question to statistics with intervals: a paired bootstrap over pictures.

Questions about one picture are not independent. So a resample draws pictures, and each brings all
its questions. Where every question has a picture of its own, this is the bootstrap over questions.

The bootstrap is paired: each question brings all its numbers, so that every block, window and layer
is measured on the same questions. Differences between two of them are then as certain as the
questions allow. The draws depend on nothing but the seed, the kind and which questions share a
picture, so that two models that were asked the same questions are paired as well.

Shares, such as the share of right answers, differ: all resamples are alike where no answer or every
answer is right. Intervals of shares, of their differences and of their ratios are score intervals
over pictures (`statistics.shares`).

A number that a question does not have (an empty set of positions, no options) is NaN, and is
counted nowhere: each statistic has its own N, the number of questions. With fewer than two pictures
there is no interval: its ends are NaN. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import ConfigError
from lightning_mllm.statistics import shares
from lightning_mllm.statistics.interval import QUANTILES, stack_interval
from lightning_mllm.statistics.missing import Floats, Integers, divide_unless_missing
from lightning_mllm.store.seeds import numpy_generator

Statistic = Callable[[Floats], Floats]  # (resamples, questions) weights -> (resamples, numbers)


@dataclass(frozen=True, eq=False)
class BootstrapDraws:
    """Resamples of some questions.

    Attributes:
        weights: (resamples, questions), how often each resample has each question.
        pictures: (questions,), the number of the picture that a question is about.
    """

    weights: Floats
    pictures: Integers


@dataclass(frozen=True)
class Bootstrap:
    """How resamples for intervals are drawn.

    Attributes:
        resamples: How many resamples are drawn.
        seed: Seed of the drawing.
    """

    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ConfigError(f"A bootstrap needs one resample or more, not {self.resamples}.")

    def draw(self, pictures: NDArray[Any], key: str = "") -> BootstrapDraws:
        """Draw as many pictures as there are, with all questions about each.

        Args:
            pictures: (questions,), what each question is about.
            key: Resamples with different keys are independent of each other.
        """
        _, first, which = np.unique(pictures, return_index=True, return_inverse=True)
        numbers = first.argsort().argsort()[which]  # in the questions' order, whatever their names
        generator = numpy_generator(self.seed, key)
        even = np.full(len(first), 1 / len(first))
        drawn = generator.multinomial(len(first), even, size=self.resamples)
        return BootstrapDraws(drawn[:, numbers].astype(np.float64), numbers)


def bootstrap_mean(values: Floats) -> Statistic:
    """Return the mean over questions of (questions, numbers) values."""
    missing = np.isnan(values)
    there, filled = (~missing).astype(np.float64), np.where(missing, 0.0, values)
    return lambda weights: divide_unless_missing(weights @ filled, weights @ there)


def bootstrap_ratio_of_means(numerators: Floats, denominators: Floats) -> Statistic:
    """Return the mean of (questions, numbers) numerators over that of denominators.

    Both means are of the questions that have both numbers.
    """
    there = ~(np.isnan(numerators) | np.isnan(denominators))
    above = np.where(there, numerators, 0.0)
    below = np.where(there, denominators, 0.0)
    return lambda weights: divide_unless_missing(weights @ above, weights @ below)


def bootstrap_median(values: Floats) -> Statistic:
    """Return the median over questions of (questions, numbers) values.

    The median of an even number of values is the mean of the middle two.
    """

    def compute(weights: Floats) -> Floats:
        counts = np.ascontiguousarray(weights.T.astype(np.int32))
        return np.stack([_weighted_median(column, counts) for column in values.T], axis=1)

    return compute


def bootstrap_estimate(statistic: Statistic, values: Floats, draws: BootstrapDraws) -> Floats:
    """Return the statistics of each number, (numbers, 4), in the order of `interval.STATISTICS`.

    The ends are NaN where all questions that have the number are about one picture.

    Args:
        statistic: The statistic of the values.
        values: (questions, numbers), for N.
        draws: From `Bootstrap.draw`, of the same questions.
    """
    ends = _quantiles(statistic(draws.weights))
    return _with_ends(statistic, ends, values, draws.pictures)


def bootstrap_difference(
    ours: Statistic, theirs: Statistic, values: Floats, draws: BootstrapDraws
) -> Floats:
    """Return the statistics of the difference of two statistics, (numbers, 4).

    Each resample has the same questions for both.

    Args:
        ours: What is compared.
        theirs: What it is compared with.
        values: (questions, numbers), NaN where one of the two has no number; neither statistic may
            count such a question.
        draws: From `Bootstrap.draw`, of the same questions.
    """
    return bootstrap_estimate(lambda weights: ours(weights) - theirs(weights), values, draws)


def bootstrap_share(counted: Floats, pictures: Integers, scale: float = 1) -> Floats:
    """Return the statistics of shares, (numbers, 4).

    Args:
        counted: (questions, numbers), see `shares.share_interval`.
        pictures: (questions,), see `shares.share_interval`.
        scale: What values and ends are multiplied by; 100 for percent.
    """
    ends = shares.share_interval(counted, pictures)
    return _with_ends(bootstrap_mean(counted), ends, counted, pictures, scale)


def bootstrap_share_difference(
    ours: Floats, theirs: Floats, pictures: Integers, scale: float = 1
) -> Floats:
    """Return the statistics of differences of shares, in the questions that have both."""
    ends = shares.share_difference_interval(ours, theirs, pictures)
    return _with_ends(bootstrap_mean(ours - theirs), ends, ours - theirs, pictures, scale)


def bootstrap_share_ratio(
    ours: Floats, theirs: Floats, pictures: Integers, scale: float = 1
) -> Floats:
    """Return the statistics of ratios of shares, in the questions that have both."""
    ends = shares.share_ratio_interval(ours, theirs, pictures)
    return _with_ends(bootstrap_ratio_of_means(ours, theirs), ends, ours + theirs, pictures, scale)


def _quantiles(resampled: Floats) -> Floats:
    """Return the ends, (2, numbers), of (resamples, numbers): of the resamples that have one."""
    defined = ~np.isnan(resampled).all(axis=0)
    ends = np.full((2, resampled.shape[1]), np.nan)
    ends[:, defined] = np.nanquantile(resampled[:, defined], QUANTILES, axis=0)
    return ends


def _with_ends(
    statistic: Statistic, ends: Floats, values: Floats, pictures: Integers, scale: float = 1
) -> Floats:
    """Return the statistics, (numbers, 4), without ends where all questions are of one picture."""
    observed = statistic(np.ones((1, len(values))))[0]
    there = ~np.isnan(values)
    kept = np.where(_are_of_several(pictures, there), ends, np.nan)
    return stack_interval(scale * observed, scale * kept, there.sum(axis=0))


def _are_of_several(pictures: Integers, there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return, per number, whether the questions that have it are about two pictures or more.

    Args:
        pictures: (questions,).
        there: (questions, numbers), which questions have the number.
    """
    least = np.where(there, pictures[:, None], len(pictures)).min(axis=0)
    most = np.where(there, pictures[:, None], -1).max(axis=0)
    several: NDArray[np.bool_] = most > least
    return several


def _weighted_median(values: Floats, counts: NDArray[np.int32]) -> Floats:
    """Return the median of each resample of (questions,) values, (resamples,).

    Args:
        values: NaN where there is none.
        counts: (questions, resamples), how often each question is drawn.
    """
    kept = np.flatnonzero(~np.isnan(values))
    ordered = kept[np.argsort(values[kept], kind="stable")]
    if not len(ordered):
        return np.full(counts.shape[1], np.nan)
    up_to = counts[ordered].cumsum(axis=0, dtype=np.int32)
    drawn = up_to[-1]

    def value_at(place: NDArray[np.int32]) -> Floats:
        index = (up_to <= place).sum(axis=0)
        # a resample without any value points past the last one
        found: Floats = values[ordered][np.minimum(index, len(ordered) - 1)]
        return found

    middle = (value_at((drawn - 1) // 2) + value_at(drawn // 2)) / 2
    return np.where(drawn > 0, middle, np.nan)
