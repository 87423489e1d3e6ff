"""The baseline of probing: a classifier that needs no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mllm.probing.probes.probe import Probe, ProbeFit, ProbeTask


@dataclass(frozen=True, kw_only=True)
class NearestCentroid(Probe):
    """Predicts the class whose mean of training features is nearest, by Euclidean distance.

    Nothing is random or tuned: all seeds give the same predictions, except for the control. A class
    without training samples is never predicted.
    """

    kind: ClassVar[str] = "nearest-centroid"

    def fit_predict(self, tasks: Sequence[ProbeTask]) -> list[ProbeFit]:
        """Classify test features; tasks that differ only in their seed are computed once."""
        fits: dict[tuple[str, int, tuple[int, ...]], ProbeFit] = {}
        keys = [(task.name, id(task.train), tuple(task.labels.tolist())) for task in tasks]
        for key, task in zip(keys, tasks, strict=True):
            if key not in fits:
                parameters = len(task.train.names) * task.train.width
                fits[key] = ProbeFit(predicted=_classify(task), parameters=parameters)
        return [fits[key] for key in keys]


def _classify(task: ProbeTask) -> Tensor:
    classes, width = len(task.train.names), task.train.width
    features = task.train.features.double()  # so that the order of the samples does not matter
    sums = torch.zeros(classes, width, dtype=torch.float64).index_add_(0, task.labels, features)
    counts = task.labels.bincount(minlength=classes)
    centroids = sums / counts.clamp(min=1)[:, None]
    distances = torch.cdist(task.test.double(), centroids)
    return distances.masked_fill(counts == 0, torch.inf).argmin(dim=1)
