"""Accuracy and macro-F1 over a fixed class list, with intervals, from one table of counts.

Everything is computed from confusion counts, so batches and processes are combined by adding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from lightning_mllm.errors import DataError
from lightning_mllm.statistics.interval import NO_INTERVAL, Interval, quantile_interval
from lightning_mllm.statistics.shares import Share

_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """How well a scorer did on N samples.

    Attributes:
        names: Class names.
        confusion: (classes, classes + 1) int64; the row is the true class, the column the predicted
            class, the last column an invalid answer.
        n: Number of samples.
        accuracy: Fraction of samples whose predicted class is the true one; an invalid answer is
            wrong.
        macro_f1: Mean of the F1 scores of the `classes_scored` classes.
        per_class_f1: F1 of each class; NaN where the class is neither true nor predicted anywhere.
        classes_scored: Number of classes that the split has samples of.
        invalid_rate: Fraction of samples whose answer names no class.
        accuracy_interval: 95 % interval of the accuracy, see `statistics.shares`.
        macro_f1_interval: 95 % interval of macro-F1: bootstrap percentiles over samples resampled
            within their classes. Where all answers are right, or all are wrong, resamples do not
            differ; then it is the interval of the accuracy. Where the answers within each class
            are otherwise all the same, nothing can be said, and its ends are NaN.
        invalid_interval: 95 % interval of the invalid rate, see `statistics.shares`.
    """

    names: tuple[str, ...]
    confusion: NDArray[np.int64]
    n: int
    accuracy: float
    macro_f1: float
    per_class_f1: tuple[float, ...]
    classes_scored: int
    invalid_rate: float
    accuracy_interval: Interval
    macro_f1_interval: Interval
    invalid_interval: Interval

    @classmethod
    def from_confusion(
        cls, names: tuple[str, ...], confusion: NDArray[np.int64], seed: int = 0
    ) -> ClassificationResult:
        """Compute all scores from confusion counts.

        Args:
            names: Class names.
            confusion: (classes, classes + 1), see `ClassificationResult.confusion`.
            seed: Seed of the bootstrap.

        Raises:
            DataError: There is no sample.
        """
        n = int(confusion.sum())
        if n == 0:
            raise DataError(
                "There is nothing to score: no sample was evaluated. Check that the split is not "
                "empty."
            )
        per_class, occurs = _per_class_f1(confusion), confusion.sum(axis=1) > 0
        right = Share.alone(int(np.trace(confusion)), n)
        invalid = Share.alone(int(confusion[:, -1].sum()), n)
        macro_f1_interval = right.interval
        if 0 < right.part < n:
            varied = bool(((confusion > 0).sum(axis=1) > 1).any())  # else resamples are all alike
            generator = np.random.default_rng(seed)
            macro_f1_interval = _bootstrap(confusion, generator) if varied else NO_INTERVAL
        return cls(
            names=names,
            confusion=confusion,
            n=n,
            accuracy=right.value,
            macro_f1=float(per_class[occurs].mean()),
            per_class_f1=tuple(per_class.tolist()),
            classes_scored=int(occurs.sum()),
            invalid_rate=invalid.value,
            accuracy_interval=right.interval,
            macro_f1_interval=macro_f1_interval,
            invalid_interval=invalid.interval,
        )

    def summary(self) -> dict[str, Any]:
        """Return the scores, without the tables, as plain numbers and lists, ready for JSON."""
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "accuracy_interval_95": list(self.accuracy_interval),
            "macro_f1": self.macro_f1,
            "macro_f1_interval_95": list(self.macro_f1_interval),
            "invalid_rate": self.invalid_rate,
            "invalid_rate_interval_95": list(self.invalid_interval),
            "classes": len(self.names),
            "classes_scored": self.classes_scored,
        }


class ClassificationMetrics(Metric):
    """Counts predictions against targets, across batches and processes.

    Macro-F1 is the mean over the classes that the split has samples of, the same for every model:
    scikit-learn's `f1_score(labels=those, average="macro")`. An answer that is not a class does not
    add a class. `compute` returns the counts, `result` the scores.

    Args:
        names: Class names; targets and predictions are indices into it.
        seed: Seed of the bootstrap.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    confusion: Tensor

    def __init__(self, names: tuple[str, ...], seed: int = 0) -> None:
        super().__init__()
        self.names = names
        self.seed = seed
        counts = torch.zeros(len(names), len(names) + 1, dtype=torch.int64)
        self.add_state("confusion", default=counts, dist_reduce_fx="sum")

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            predicted: (batch,) class indices, -1 for an invalid answer.
            targets: (batch,) class indices.

        Raises:
            DataError: A target is not a class: the sample has no label, or one that is not listed.
        """
        classes = len(self.names)
        unknown = targets[(targets < 0) | (targets >= classes)]
        if unknown.numel():
            raise DataError(
                f"{unknown.numel()} of {targets.numel()} samples have no label among the {classes} "
                f"classes (the first has target {int(unknown[0])}). Scores need a labelled split: "
                "give every sample a label, or leave the scorers out."
            )
        columns = predicted.where(predicted >= 0, classes)
        self.confusion.index_put_((targets, columns), torch.ones_like(targets), accumulate=True)

    def compute(self) -> Tensor:
        """Return the confusion counts of all processes, (classes, classes + 1) int64."""
        return self.confusion

    def result(self) -> ClassificationResult:
        """Return the scores over all processes.

        Raises:
            DataError: There was no sample.
        """
        counts: Tensor = self.compute()
        return ClassificationResult.from_confusion(
            self.names, counts.cpu().numpy().copy(), self.seed
        )


def _per_class_f1(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return 2 hits / (true + predicted) of each class; NaN where nothing is true or predicted."""
    hits = np.diagonal(confusion).astype(np.float64)
    occurrences = confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0)  # true + predicted
    scores = np.full(len(hits), np.nan)
    np.divide(2 * hits, occurrences, out=scores, where=occurrences > 0)
    return scores


def _bootstrap(confusion: NDArray[np.int64], generator: np.random.Generator) -> Interval:
    """Return the interval of macro-F1.

    Samples are drawn with replacement among those of the same class, so that each resample has the
    class sizes of the split; otherwise a class of four images would be missing from one resample in
    fifty. To draw the samples of a class is to draw its row of counts from a multinomial
    distribution.
    """
    support = confusion.sum(axis=1)
    scored = np.flatnonzero(support)
    hits = np.zeros((_RESAMPLES, len(confusion)))
    predicted = np.zeros((_RESAMPLES, len(confusion)))
    for index in scored:
        row = generator.multinomial(
            support[index], confusion[index] / support[index], size=_RESAMPLES
        )
        hits[:, index] = row[:, index]
        predicted += row[:, :-1]
    f1 = 2 * hits[:, scored] / (support + predicted)[:, scored]
    return quantile_interval(f1.mean(axis=1))
