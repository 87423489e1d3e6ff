"""Scores of models that were tested on the same samples, and their differences, with intervals.

Three things are random: the seeds that a model is trained with, the samples that it is tested on, and, where it is
read by a probe, the samples that the probe is trained on. A resample draws all of them, independently of each other
(Owen, 2007): test samples within their classes, the same ones for all models and seeds; seeds, the same ones for all
models; and one of the halves of the training samples on which probes were trained besides, the same one for all models
and seeds: the variance over the halves is about that over training splits of the full size (`Probe.fit_score`). Of S
seeds it draws S - 1, with which the variance of a mean over seeds is unbiased (Rao and Wu, 1988); drawing S, as is
usual, makes it a third too small at three seeds. What is random in single answers alone counts in each draw, so that
intervals are rather too wide than too narrow.

The bootstrap gives the variance. Quantiles of a few seeds would give no 95 %: of three seeds, whose differences have
one sign in every fourth study without any difference, no resample has the other. So intervals and p-values come from a
t distribution; its degrees of freedom are Satterthwaite's for a variance of which the part between the seeds has S - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student  # type: ignore[import-untyped]

from lightning_mllm.errors import DataError

Measure = Literal["accuracy", "macro_f1"]
MEASURES: tuple[Measure, ...] = ("accuracy", "macro_f1")
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

INVALID, ABSENT = -1, -2  # an answer that is no class; a sample that is not in the test split of this seed
_CHUNK = 250  # resamples at a time: bounds the memory
_ROUNDING = 1e-12  # smaller differences between scores are of their rounding
_MOST_FREEDOM = 1e6  # of a t distribution, which is normal there


@dataclass(frozen=True)
class Estimate:
    """A number that seeds and samples make uncertain.

    Attributes:
        value: The number.
        variance: Of the number.
        freedom: Degrees of freedom of the variance.
    """

    value: float
    variance: float
    freedom: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        margin = float(student.ppf(0.975, self.freedom)) * math.sqrt(self.variance)
        return self.value - margin, self.value + margin

    @property
    def p(self) -> float:
        """Two-sided p-value of "the true value is 0", where the variance is not 0."""
        return float(2 * student.sf(abs(self.value) / math.sqrt(self.variance), self.freedom))


@dataclass(frozen=True, eq=False)
class Scores:
    """A score of one model.

    Attributes:
        observed: (seeds,).
        resampled: (resamples, seeds): of the same models on resampled samples; of probes of halves, whose variance
            counts, and not their level.
        draws: (resamples, seeds - 1) indices of the seeds of each resample; (resamples, 1) of a single seed.
    """

    observed: Floats
    resampled: Floats
    draws: Integers

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(self.observed.mean())

    @property
    def resampled_means(self) -> Floats:
        """(resamples,)."""
        means: Floats = np.take_along_axis(self.resampled, self.draws, axis=1).mean(axis=1)
        return means

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean, within the range of scores; of a single seed, over samples only."""
        low, high = estimate(self.observed, self.resampled_means).interval
        return max(low, 0.0), min(high, 1.0)


class Resampler:
    """The resamples of a test split, its seeds and halves, the same for every model that is scored with it.

    Args:
        targets: (samples,) true classes.
        seeds: Number of seeds.
        halves: Number of halves of the training samples, of models that are probes.
        resamples: How many.
        seed: Of the drawing.

    Raises:
        DataError: There is no sample or no seed.
    """

    def __init__(self, targets: Integers, seeds: int, halves: int = 1, resamples: int = 2000, seed: int = 0) -> None:
        if not len(targets) or not seeds:
            raise DataError(f"There is nothing to resample: {len(targets)} samples, {seeds} seeds.")
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
        """Return the scores without resampling, (seeds, repetitions, samples) predictions, as means over all."""
        means = self._means(predicted, np.ones((1, len(self.targets))))
        return {measure: float(values.mean()) for measure, values in means.items()}

    def score(self, predicted: Integers, of_halves: Integers | None = None) -> dict[Measure, Scores]:
        """Score a model.

        Args:
            predicted: (seeds, repetitions, samples) classes, `INVALID` or `ABSENT`. Scores are averaged over the
                repetitions, e.g. several probes of one model.
            of_halves: (seeds, halves, samples), likewise, of probes that were trained on halves; they take the place of
                the others in the resamples.
        """
        once = np.ones((1, len(self.targets)))
        observed = self._means(predicted, once)
        resampled = self._means(predicted, self.weights) if of_halves is None else self._means_of_halves(of_halves)
        return {measure: Scores(observed[measure][0], resampled[measure], self.draws) for measure in MEASURES}

    def _means_of_halves(self, predicted: Integers) -> dict[Measure, Floats]:
        """Return the scores of each resample, (resamples, seeds), of the half that it has drawn."""
        found = {measure: np.zeros((len(self.weights), len(predicted))) for measure in MEASURES}
        for half in range(predicted.shape[1]):
            (rows,) = np.nonzero(self.halves == half)
            for measure, values in self._means(predicted[:, half : half + 1], self.weights[rows]).items():
                found[measure][rows] = values
        return found

    def _means(self, predicted: Integers, weights: Floats) -> dict[Measure, Floats]:
        """Return the scores under weights of the samples, (rows of weights, seeds), averaged over repetitions."""
        parts = [weights[start : start + _CHUNK] for start in range(0, len(weights), _CHUNK)]
        table = np.array(
            [[np.hstack([self._weighted(each, part) for part in parts]) for each in seed] for seed in predicted]
        )  # (seeds, repetitions, measures, rows)
        accuracy, macro_f1 = table.mean(axis=1).transpose(1, 2, 0)
        return {"accuracy": accuracy, "macro_f1": macro_f1}

    def _weighted(self, predicted: Integers, weights: Floats) -> Floats:
        """Return accuracy and macro-F1 over the classes that have samples, (2, rows of weights)."""
        here = predicted != ABSENT
        predicted, targets, weights = predicted[here], self.targets[here], weights[:, here]
        classes = np.unique(targets)
        true = targets[:, None] == classes
        said = predicted[:, None] == classes
        support, hits = weights @ true.astype(float), weights @ (true & said).astype(float)
        occurrences = support + weights @ said.astype(float)
        f1 = np.divide(2 * hits, occurrences, out=np.zeros_like(hits), where=occurrences > 0)
        drawn = np.maximum(support.sum(axis=1), 1)  # of the few samples of a seed a resample may draw none
        return np.stack([hits.sum(axis=1) / drawn, f1.mean(axis=1)])


def estimate(by_seed: Floats, resampled: Floats) -> Estimate:
    """Return the mean of a number over seeds, with its uncertainty.

    Args:
        by_seed: (seeds,), of each seed on the test split.
        resampled: (resamples,), means of the seeds and samples that were drawn.
    """
    value, seeds = float(by_seed.mean()), len(by_seed)
    variance = float(resampled.var())
    between = float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    freedom = (seeds - 1) * max(variance / between, 1) ** 2 if between > _ROUNDING**2 else math.inf
    return Estimate(
        value=value if abs(value) > _ROUNDING else 0.0,
        variance=variance if variance > _ROUNDING**2 else 0.0,
        freedom=min(freedom, _MOST_FREEDOM),
    )


def difference(higher: Scores, lower: Scores) -> Estimate:
    """Return `higher` minus `lower`."""
    return estimate(higher.observed - lower.observed, higher.resampled_means - lower.resampled_means)


def slope(rates: Sequence[float], scores: Sequence[Scores]) -> Estimate:
    """Return by how much a score rises with a rate that is ten times as high: the least-squares line over log rates."""
    positions = np.log10(rates) - np.log10(rates).mean()
    factors = positions / (positions @ positions)
    by_seed = np.stack([each.observed for each in scores], axis=1) @ factors
    return estimate(by_seed, np.stack([each.resampled_means for each in scores], axis=1) @ factors)


def relative_change(new: Scores, original: Scores) -> tuple[float, float, float] | None:
    """Return the change of the mean in per cent of the original, with its interval; None if the original is 0.

    The interval takes the change as linear in the scores. Its ends are NaN where the original could be 0, where no
    interval is bounded.
    """
    if not original.mean:
        return None
    ratio = new.mean / original.mean
    change = 100 * (ratio - 1)
    if original.interval[0] <= 0:
        return change, math.nan, math.nan
    scale = 100 / original.mean
    by_seed = scale * (new.observed - ratio * original.observed)  # of mean 0
    low, high = estimate(by_seed, scale * (new.resampled_means - ratio * original.resampled_means)).interval
    return change, change + low, change + high


def to_arrays(
    models: Mapping[Any, Sequence[tuple[Mapping[str, str], Sequence[Mapping[str, str]]]]],
) -> tuple[Integers, dict[Any, Integers]]:
    """Turn answers by sample into arrays in which the samples of all seeds have their place.

    Args:
        models: Name -> per seed (the same seeds for all): the true classes, and the answers of each repetition, by
            sample id; an empty answer is invalid.

    Returns:
        Targets, (samples,), and by model the predictions, (seeds, repetitions, samples).

    Raises:
        DataError: Models were not tested on the same samples, or classes of a sample disagree.
    """
    targets: dict[str, str] = {}
    for name, seeds in models.items():
        for index, (truth, _) in enumerate(seeds):
            first = next(iter(models.values()))[index][0]
            if truth != first or any(targets.get(sample, label) != label for sample, label in truth.items()):
                raise DataError(
                    f"{name} was tested on other samples than the models it is compared with ({len(truth)} and "
                    f"{len(first)} samples), or their classes differ. Run all cells of a domain on the same data."
                )
            targets.update(truth)
    labels = [
        *targets.values(),
        *(a for seeds in models.values() for _, said in seeds for r in said for a in r.values()),
    ]
    codes = {label: code for code, label in enumerate(sorted(set(labels) - {""}))} | {"": INVALID}
    order = sorted(targets)
    predictions = {
        name: np.array([[[codes[r[s]] if s in r else ABSENT for s in order] for r in said] for _, said in seeds])
        for name, seeds in models.items()
    }
    return np.array([codes[targets[sample]] for sample in order]), predictions
