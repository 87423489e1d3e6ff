"""Differences between models that were tested on the same samples, with intervals: a paired, hierarchical bootstrap.

Two things are random: the seeds that a model is trained with, and the samples that it is tested on. A resample draws
both, independently of each other (Owen, 2007): samples within their classes, the same ones for all models and seeds;
and seeds, the same ones for all models. Of S seeds it draws S - 1, with which the variance of a mean over seeds is
unbiased (Rao and Wu, 1988); drawing S, as is usual, makes it a third too small at three seeds. What is random in single
answers alone counts in both draws, so that intervals are rather too wide than too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import DataError

Measure = Literal["accuracy", "macro_f1"]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

INVALID, ABSENT = -1, -2  # an answer that is no class; a sample that is not in the test split of this seed
_CHUNK = 250  # resamples at a time: bounds the memory


@dataclass(frozen=True, eq=False)
class Scores:
    """A score of one model.

    Attributes:
        observed: (seeds,).
        resampled: (resamples, seeds): of the same models on resampled samples.
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
        """The 95 % interval of the mean."""
        return interval(self.resampled_means)


class Resampler:
    """The resamples of a test split and its seeds, the same for every model that is scored with it.

    Args:
        targets: (samples,) true classes.
        seeds: Number of seeds.
        resamples: How many.
        seed: Of the drawing.

    Raises:
        DataError: There is no sample or no seed.
    """

    def __init__(self, targets: Integers, seeds: int, resamples: int = 2000, seed: int = 0) -> None:
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

    def observe(self, predicted: Integers) -> dict[Measure, float]:
        """Return the scores without resampling, (seeds, repetitions, samples) predictions, as means over all."""
        means = self._means(predicted, np.ones((1, len(self.targets))))
        return {measure: float(values.mean()) for measure, values in means.items()}

    def score(self, predicted: Integers) -> dict[Measure, Scores]:
        """Score a model.

        Args:
            predicted: (seeds, repetitions, samples) classes, `INVALID` or `ABSENT`. Scores are averaged over the
                repetitions, e.g. several probes of one model.
        """
        once = np.ones((1, len(self.targets)))
        observed = self._means(predicted, once)
        resampled = self._means(predicted, self.weights)
        return {
            measure: Scores(observed[measure][0], resampled[measure], self.draws)
            for measure in ("accuracy", "macro_f1")
        }

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


def interval(resampled: Floats) -> tuple[float, float]:
    """Return the 2.5 % and the 97.5 % quantile."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def difference(higher: Scores, lower: Scores) -> tuple[float, Floats]:
    """Return `higher` minus `lower`: of the means over seeds, and resampled, (resamples,)."""
    return higher.mean - lower.mean, higher.resampled_means - lower.resampled_means


def relative_change(new: Scores, original: Scores) -> tuple[float, float, float] | None:
    """Return the change of the mean in per cent of the original, with its interval; None if the original is 0."""
    if not original.mean or not original.resampled_means.all():
        return None
    change = 100 * (new.mean / original.mean - 1)
    return change, *interval(100 * (new.resampled_means / original.resampled_means - 1))


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
