"""Accuracy of open answers, per kind of question and over all, with intervals, from counts.

The intervals are Wilson's score intervals, which keep their level at small N and near 0 and 1, where the usual
p +- 1.96 s does not (Wilson, 1927, Journal of the American Statistical Association 22; Brown, Cai and DasGupta, 2001,
Statistical Science 16). They take the samples as independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.exact_match import OpenAnswer
from lightning_mllm.evaluation.metrics import Interval

_Z = NormalDist().inv_cdf(0.975)


def wilson(share: float, n: float) -> Interval:
    """Return Wilson's 95 % score interval of a share of n: all p with |share - p| <= z sqrt(p (1 - p) / n)."""
    z2 = _Z**2 / n
    centre = share + z2 / 2
    reach = math.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    low, high = ((centre + sign * reach) / (1 + z2) for sign in (-1, 1))
    return Interval(max(low, 0.0), min(high, 1.0))  # but for rounding they lie between 0 and 1


@dataclass(frozen=True)
class AnswerScore:
    """How many of N answers are right.

    Attributes:
        n: Number of answers, at least 1.
        correct: How many of them are right.
    """

    n: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % score interval."""
        return wilson(self.accuracy, self.n)

    def summary(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        return {"n": self.n, "accuracy": self.accuracy, "accuracy_interval_95": list(self.interval)}


@dataclass(frozen=True)
class AnswerResult:
    """How well open answers did.

    Attributes:
        per_kind: Kind -> its score, for the kinds that were asked.
    """

    per_kind: Mapping[str, AnswerScore]

    @classmethod
    def from_counts(cls, kinds: Iterable[str], counts: Tensor) -> AnswerResult | None:
        """Make the scores of (kinds, 2) counts of all and of right answers; None if there was no answer."""
        scores = {kind: AnswerScore(*row) for kind, row in zip(kinds, counts.tolist(), strict=True) if row[0]}
        return cls(scores) if scores else None

    @property
    def overall(self) -> AnswerScore:
        """The score over all answers, whatever their kind."""
        scores = self.per_kind.values()
        return AnswerScore(sum(score.n for score in scores), sum(score.correct for score in scores))

    @property
    def mean_over_kinds(self) -> float:
        """Mean accuracy of the kinds, each of which counts as much, however many answers it has."""
        return fmean(score.accuracy for score in self.per_kind.values())

    def summary(self) -> dict[str, Any]:
        """Return the scores as plain numbers and lists, ready for JSON."""
        per_kind = {kind: score.summary() for kind, score in self.per_kind.items()}
        return {**self.overall.summary(), "mean_over_kinds": self.mean_over_kinds, "kinds": per_kind}


class AnswerMetrics(Metric):
    """Counts open answers, all and right, per kind, across batches and processes.

    `compute` gives the counts, `result` the scores.

    Args:
        kinds: All kinds of the split, the same in all processes.

    Raises:
        DataError: A kind has the name under which the accuracy over all kinds is logged.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    counts: Tensor

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__()
        if "accuracy" in kinds:
            raise DataError("A kind of question is named 'accuracy', as the accuracy over all kinds is. Rename it.")
        self.kinds = kinds
        self._rows = {kind: row for row, kind in enumerate(kinds)}
        self.add_state("counts", default=torch.zeros(len(kinds), 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, answers: Iterable[OpenAnswer]) -> None:
        """Count the answers of a batch, of which there may be none."""
        counts = [[0, 0] for _ in self.kinds]
        for answer in answers:
            row = counts[self._rows[answer.kind]]
            row[0] += 1
            row[1] += answer.correct
        self.counts += torch.tensor(counts, device=self.counts.device)

    def compute(self) -> Tensor:
        """Return the counts of all processes, (kinds, 2) int64: all answers, right answers."""
        return self.counts

    def result(self) -> AnswerResult | None:
        """Return the scores over all processes; None if there was no answer."""
        counts: Tensor = self.compute()
        return AnswerResult.from_counts(self.kinds, counts)
