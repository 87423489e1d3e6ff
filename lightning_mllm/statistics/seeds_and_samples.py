"""Scores of models that were tested on the same samples, and their differences, with intervals.

Three things are random: the seeds that a model is trained with, the samples that it is tested on,
and, where a probe gives the score, the samples that the probe is trained on. A resample draws all
of them, independently of each other (Owen, 2007):

- test samples within their classes, the same ones for all models and seeds;
- seeds, the same ones for all models. Of S seeds a resample draws S - 1, with which the variance of
  a mean over seeds is unbiased (Rao and Wu, 1988). Drawing S, as is usual, makes it a third too
  small at three seeds;
- for probes, one of the halves of the training samples on which they were also trained, the same
  one for all models and seeds. The variance over the halves is about that over training splits of
  the full size (`Probe.fit_score`).

What is random in single answers alone counts in each draw, so that intervals are rather too wide
than too narrow.

The bootstrap gives the variance. Quantiles of a few seeds would not give 95 %: if there is no
difference, three seeds have differences of one sign in every fourth study, and then no resample has
the other sign. So intervals and p-values come from a t distribution. Its degrees of freedom are
Satterthwaite's for a variance of which the part between the seeds has S - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student  # type: ignore[import-untyped]

from lightning_mllm.errors import DataError
from lightning_mllm.statistics.answer_arrays import ABSENT
from lightning_mllm.statistics.interval import Interval, interval_t_quantile
from lightning_mllm.statistics.missing import Floats, Integers

Measure = Literal["accuracy", "macro_f1"]
MEASURES: tuple[Measure, ...] = ("accuracy", "macro_f1")

_CHUNK = 250  # resamples at a time: bounds the memory
_ROUNDING = 1e-12  # smaller differences between scores come from rounding
_MOST_FREEDOM = 1e6  # of a t distribution, which is normal there


@dataclass(frozen=True)
class SeedEstimate:
    """A number that is uncertain because of seeds and samples.

    Attributes:
        value: The number.
        variance: Variance of the number.
        freedom: Degrees of freedom of the variance.
    """

    value: float
    variance: float
    freedom: float

    @property
    def interval(self) -> Interval:
        """The 95 % interval."""
        margin = float(interval_t_quantile(self.freedom)) * math.sqrt(self.variance)
        return Interval(self.value - margin, self.value + margin)

    @property
    def p(self) -> float:
        """Two-sided p-value of "the true value is 0", where the variance is not 0."""
        statistic = abs(self.value) / math.sqrt(self.variance)
        return float(2 * student.sf(statistic, self.freedom))


@dataclass(frozen=True, eq=False)
class SeedScores:
    """A score of one model.

    Attributes:
        observed: (seeds,).
        resampled: (resamples, seeds): scores of the same models on resampled samples. For probes of
            halves only their variance counts, not their level.
        draws: (resamples, seeds - 1) indices of the seeds of each resample; (resamples, 1) where
            there is a single seed.
    """

    observed: Floats
    resampled: Floats
    draws: Integers

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(self.observed.mean())

    @property
    def resampled_means(self) -> Floats:
        """(resamples,), the mean over the seeds that each resample has drawn."""
        means: Floats = np.take_along_axis(self.resampled, self.draws, axis=1).mean(axis=1)
        return means

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the mean, within 0 and 1; of a single seed, over samples only."""
        low, high = estimate_over_seeds(self.observed, self.resampled_means).interval
        return Interval(max(low, 0.0), min(high, 1.0))


class SeedResampler:
    """The resamples of a test split, its seeds and halves: the same for every model scored with it.

    Args:
        targets: (samples,) true classes.
        seeds: Number of seeds.
        halves: Number of halves of the training samples, of models that are probes.
        resamples: Number of resamples.
        seed: Seed of the drawing.

    Raises:
        DataError: There is no sample or no seed.
    """

    def __init__(
        self,
        targets: Integers,
        seeds: int,
        halves: int = 1,
        resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        if not len(targets) or not seeds:
            raise DataError(
                f"There is nothing to resample: {len(targets)} samples, {seeds} seeds. Check that "
                "the test split is not empty."
            )
        generator = np.random.default_rng(seed)
        self.targets = targets
        self.weights = np.zeros((resamples, len(targets)))  # how often each sample is drawn
        for target in np.unique(targets):
            (members,) = np.nonzero(targets == target)
            even = np.full(len(members), 1 / len(members))
            self.weights[:, members] = generator.multinomial(len(members), even, size=resamples)
        self.draws = generator.integers(0, seeds, size=(resamples, max(seeds - 1, 1)))
        self.halves = generator.integers(0, halves, size=resamples)

    def observe(self, predicted: Integers) -> dict[Measure, float]:
        """Return the scores without resampling, as means over seeds and repetitions.

        Args:
            predicted: (seeds, repetitions, samples) classes, `INVALID` or `ABSENT`.
        """
        means = self._means(predicted, np.ones((1, len(self.targets))))
        return {measure: float(values.mean()) for measure, values in means.items()}

    def score(
        self, predicted: Integers, of_halves: Integers | None = None
    ) -> dict[Measure, SeedScores]:
        """Score a model.

        Args:
            predicted: (seeds, repetitions, samples) classes, `INVALID` or `ABSENT`. Scores are
                averaged over the repetitions, e.g. several probes of one model.
            of_halves: (seeds, halves, samples) classes by probes that were trained on halves; they
                take the place of the others in the resamples.
        """
        observed = self._means(predicted, np.ones((1, len(self.targets))))
        resampled = self._resample(predicted, of_halves)
        found: dict[Measure, SeedScores] = {}
        for measure in MEASURES:
            found[measure] = SeedScores(observed[measure][0], resampled[measure], self.draws)
        return found

    def _resample(self, predicted: Integers, of_halves: Integers | None) -> dict[Measure, Floats]:
        """Return the scores of each resample, (resamples, seeds)."""
        if of_halves is None:
            return self._means(predicted, self.weights)
        return self._means_of_halves(of_halves)

    def _means_of_halves(self, predicted: Integers) -> dict[Measure, Floats]:
        """Return the scores of each resample, (resamples, seeds), of the half that it has drawn."""
        found = {measure: np.zeros((len(self.weights), len(predicted))) for measure in MEASURES}
        for half in range(predicted.shape[1]):
            (rows,) = np.nonzero(self.halves == half)
            means = self._means(predicted[:, half : half + 1], self.weights[rows])
            for measure, values in means.items():
                found[measure][rows] = values
        return found

    def _means(self, predicted: Integers, weights: Floats) -> dict[Measure, Floats]:
        """Return the scores, (resamples, seeds), averaged over repetitions.

        Args:
            predicted: (seeds, repetitions, samples).
            weights: (resamples, samples).
        """
        seeds, repetitions = predicted.shape[:2]
        table = np.empty((seeds, repetitions, len(MEASURES), len(weights)))
        for seed, repetition in np.ndindex(seeds, repetitions):
            for start in range(0, len(weights), _CHUNK):
                part = slice(start, start + _CHUNK)
                answers = predicted[seed, repetition]
                table[seed, repetition, :, part] = self._weighted_scores(answers, weights[part])
        accuracy, macro_f1 = table.mean(axis=1).transpose(1, 2, 0)
        return {"accuracy": accuracy, "macro_f1": macro_f1}

    def _weighted_scores(self, predicted: Integers, weights: Floats) -> Floats:
        """Return accuracy and macro-F1 over the classes that have samples, (2, resamples)."""
        here = predicted != ABSENT
        targets, weights = self.targets[here], weights[:, here]
        classes = np.unique(targets)
        true = targets[:, None] == classes
        said = predicted[here][:, None] == classes
        support = weights @ true.astype(float)
        hits = weights @ (true & said).astype(float)
        occurrences = support + weights @ said.astype(float)
        f1 = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
        # a resample may draw none of a seed's few samples
        drawn = np.maximum(support.sum(axis=1), 1)
        return np.stack([hits.sum(axis=1) / drawn, f1.mean(axis=1)])


def estimate_over_seeds(by_seed: Floats, resampled: Floats) -> SeedEstimate:
    """Return the mean of a number over seeds, with its uncertainty.

    Args:
        by_seed: (seeds,), the number of each seed on the test split.
        resampled: (resamples,), means of the seeds and samples that were drawn.
    """
    value, seeds = float(by_seed.mean()), len(by_seed)
    variance = float(resampled.var())
    between = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    freedom = math.inf
    if between > _ROUNDING**2:
        freedom = (seeds - 1) * max(variance / between, 1) ** 2
    return SeedEstimate(
        value=value if abs(value) > _ROUNDING else 0.0,
        variance=variance if variance > _ROUNDING**2 else 0.0,
        freedom=min(freedom, _MOST_FREEDOM),
    )


def difference_over_seeds(higher: SeedScores, lower: SeedScores) -> SeedEstimate:
    """Return `higher` minus `lower`."""
    observed = higher.observed - lower.observed
    return estimate_over_seeds(observed, higher.resampled_means - lower.resampled_means)


def slope_over_seeds(rates: Sequence[float], scores: Sequence[SeedScores]) -> SeedEstimate:
    """Return by how much a score rises with a rate that is ten times as high.

    It is the slope of the least-squares line over the logarithms of the rates.
    """
    positions = np.log10(rates) - np.log10(rates).mean()
    factors = positions / (positions @ positions)
    by_seed = np.stack([each.observed for each in scores], axis=1) @ factors
    resampled = np.stack([each.resampled_means for each in scores], axis=1) @ factors
    return estimate_over_seeds(by_seed, resampled)


def relative_change_over_seeds(
    new: SeedScores, original: SeedScores
) -> tuple[float, float, float] | None:
    """Return the change of the mean in percent of the original, with its interval.

    The interval takes the change as linear in the scores. Its ends are NaN where the interval of
    the original holds 0: then no interval of the change is bounded. The result is None if the
    original is 0.
    """
    if not original.mean:
        return None
    ratio = new.mean / original.mean
    change = 100 * (ratio - 1)
    if original.interval[0] <= 0:
        return change, math.nan, math.nan
    scale = 100 / original.mean
    by_seed = scale * (new.observed - ratio * original.observed)  # its mean is 0
    resampled = scale * (new.resampled_means - ratio * original.resampled_means)
    low, high = estimate_over_seeds(by_seed, resampled).interval
    return change, change + low, change + high
