"""Accuracy of open answers, per kind of question and over all, with intervals over pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.open_answers.exact_match import OpenAnswer
from lightning_mllm.evaluation.tally import Tally
from lightning_mllm.statistics.interval import Interval
from lightning_mllm.statistics.shares import Share
from lightning_mllm.store.seeds import seed_number_of


@dataclass(frozen=True)
class AnswerScore:
    """How many of N answers are right.

    Attributes:
        n: Number of answers, at least 1.
        correct: How many of them are right.
        share: Share of right answers over pictures; None if each answer is about a picture of its
            own.
    """

    n: int
    correct: int
    share: Share | None = field(default=None, compare=False)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.n

    @property
    def interval(self) -> Interval:
        """95 % interval over pictures, see `statistics.shares`."""
        return (self.share or Share.alone(self.correct, self.n)).interval

    def summary(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        return {"n": self.n, "accuracy": self.accuracy, "accuracy_interval_95": list(self.interval)}


@dataclass(frozen=True)
class AnswerResult:
    """How well open answers did.

    Attributes:
        per_kind: Kind -> score, for the kinds that were asked.
        share: Share of right answers of all kinds, over pictures; None if each answer is about a
            picture of its own.
    """

    per_kind: Mapping[str, AnswerScore]
    share: Share | None = field(default=None, compare=False)

    @classmethod
    def from_answers(cls, kinds: Iterable[str], answers: Tensor) -> AnswerResult | None:
        """Compute the scores; None if there is no answer.

        Args:
            kinds: All kinds; the number of a kind is its position.
            answers: (answers, 3): number of the kind, number of the picture, 1 if right, else 0.
        """
        scores = {}
        answers = answers.cpu()
        for number, kind in enumerate(kinds):
            own = answers[answers[:, 0] == number]
            if len(own):
                share = Share.of(own[:, 1], own[:, 2])
                scores[kind] = AnswerScore(share.whole, share.part, share)
        return cls(scores, Share.of(answers[:, 1], answers[:, 2])) if scores else None

    @property
    def overall(self) -> AnswerScore:
        """The score over all answers, whatever their kind."""
        scores = self.per_kind.values()
        n, correct = sum(score.n for score in scores), sum(score.correct for score in scores)
        return AnswerScore(n, correct, self.share)

    @property
    def mean_over_kinds(self) -> float:
        """Mean accuracy of the kinds; each counts the same, however many answers it has."""
        return fmean(score.accuracy for score in self.per_kind.values())

    def summary(self) -> dict[str, Any]:
        """Return the scores as plain numbers and lists, ready for JSON."""
        per_kind = {kind: score.summary() for kind, score in self.per_kind.items()}
        return {
            **self.overall.summary(),
            "mean_over_kinds": self.mean_over_kinds,
            "kinds": per_kind,
        }


class AnswerMetrics(Tally):
    """Counts open answers, all and right, per kind, across batches and processes.

    `compute` returns the counts, `result` the scores.

    Args:
        kinds: All kinds of the split, the same in all processes.

    Raises:
        DataError: A kind is named "accuracy", as the accuracy over all kinds is in logs.
    """

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__(columns=3)
        if "accuracy" in kinds:
            raise DataError(
                "A kind of question is named 'accuracy', as the accuracy over all kinds is. Rename "
                "it."
            )
        self.kinds = kinds
        self._numbers = {kind: number for number, kind in enumerate(kinds)}

    def update(self, answers: Iterable[OpenAnswer]) -> None:
        """Count the answers of a batch; there may be none."""
        rows = []
        for answer in answers:
            picture = seed_number_of(answer.picture or answer.sample_id, signed=True)
            rows.append((self._numbers[answer.kind], picture, answer.correct))
        self.add(rows)

    def result(self) -> AnswerResult | None:
        """Return the scores over all processes; None if there was no answer."""
        answers: Tensor = self.compute()
        return AnswerResult.from_answers(self.kinds, answers)
