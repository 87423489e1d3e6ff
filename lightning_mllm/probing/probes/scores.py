"""The scores of a probe, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_mllm.evaluation.classification.metrics import ClassificationResult


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeScore:
    """How well a probe, trained once per seed, reads the classes of the test split from features.

    The numbers of a seed are a `ClassificationResult`, so that accuracy and macro-F1 mean the same
    for a probe and for a model: macro-F1 is the mean over the classes that the test split has.

    Attributes:
        probe: Name of the probe.
        seeds: Seeds, in the order of everything that is kept per seed.
        results: Scores, per seed.
        predictions: (seeds, test samples) class indices, for paired tests between models.
        targets: (test samples,) true class indices.
        sample_ids: Id of each test sample.
        width: Width of the features.
        n_train: Number of training samples, held-out ones included.
        epochs: Number of epochs of training, per seed; 0 where nothing is trained in epochs.
        best_epochs: Epoch whose weights were kept, per seed. If it is the last epoch that was
            allowed, the probe was still improving: there were too few steps.
        converged: Per seed, whether training went on until nothing more was gained; None if the
            probe has no rule for that.
        parameters: Number of trained weights.
        controls: Scores of the same probe trained on shuffled labels, per seed; empty without a
            control.
        halves: (test samples,) class indices of each probe that was trained on a half of the
            training samples.
    """

    probe: str
    seeds: tuple[int, ...]
    results: tuple[ClassificationResult, ...]
    predictions: Tensor
    targets: Tensor
    sample_ids: tuple[str, ...]
    width: int
    n_train: int
    epochs: tuple[int, ...]
    best_epochs: tuple[int, ...]
    converged: tuple[bool | None, ...]
    parameters: int
    controls: tuple[ClassificationResult, ...] = ()
    halves: tuple[Tensor, ...] = ()

    @property
    def n_test(self) -> int:
        """Number of test samples."""
        return len(self.targets)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the seeds."""
        return fmean(_accuracies(self.results))

    @property
    def accuracy_sd(self) -> float | None:
        """Standard deviation of the accuracy over the seeds (n - 1); None for a single seed."""
        return _deviation(_accuracies(self.results))

    @property
    def macro_f1(self) -> float:
        """Mean macro-F1 over the seeds."""
        return fmean(self._macro_f1_per_seed)

    @property
    def macro_f1_sd(self) -> float | None:
        """Standard deviation of macro-F1 over the seeds (n - 1); None for a single seed."""
        return _deviation(self._macro_f1_per_seed)

    @property
    def _macro_f1_per_seed(self) -> list[float]:
        return [result.macro_f1 for result in self.results]

    @property
    def per_class_f1(self) -> dict[str, float]:
        """Class -> mean F1 over the seeds, for the classes that the test split has."""
        table = np.array([result.per_class_f1 for result in self.results])  # (seeds, classes)
        names, present = self.results[0].names, self.targets.unique().tolist()
        return {names[target]: float(table[:, target].mean()) for target in present}

    @property
    def control_accuracy(self) -> float | None:
        """Mean accuracy of the probes trained on shuffled labels; None without a control."""
        return fmean(_accuracies(self.controls)) if self.controls else None

    @property
    def selectivity(self) -> float | None:
        """Accuracy minus control accuracy (Hewitt and Liang, 2019); None without a control."""
        return None if self.control_accuracy is None else self.accuracy - self.control_accuracy

    def summary(self) -> dict[str, Any]:
        """Return the scores, without the predictions, as plain values, ready for JSON."""
        return {
            "probe": self.probe,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "classes": len(self.results[0].names),
            "classes_scored": self.results[0].classes_scored,
            "width": self.width,
            "parameters": self.parameters,
            "accuracy": self.accuracy,
            "accuracy_sd": self.accuracy_sd,
            "macro_f1": self.macro_f1,
            "macro_f1_sd": self.macro_f1_sd,
            "control_accuracy": self.control_accuracy,
            "selectivity": self.selectivity,
            "per_class_f1": self.per_class_f1,
            "seeds": list(self.seeds),
            "accuracy_per_seed": _accuracies(self.results),
            "macro_f1_per_seed": self._macro_f1_per_seed,
            "control_accuracy_per_seed": _accuracies(self.controls),
            "epochs": list(self.epochs),
            "best_epochs": list(self.best_epochs),
            "converged": list(self.converged),
        }


def score_probe(names: tuple[str, ...], predicted: Tensor, targets: Tensor) -> ClassificationResult:
    """Score predictions; both they and the targets are (samples,) class indices."""
    counts = torch.zeros(len(names), len(names) + 1, dtype=torch.int64)
    counts.index_put_((targets, predicted), torch.ones_like(targets), accumulate=True)
    return ClassificationResult.from_confusion(names, counts.numpy())


def _accuracies(results: Sequence[ClassificationResult]) -> list[float]:
    return [result.accuracy for result in results]


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
