"""POPE: whether a model says yes to objects that are not there (Li et al., 2023, arXiv 2305.10355).

Each question is of one object; half of them are about what is there. What is absent is drawn at random, among the most
frequent objects (popular), or among those that often stand beside what is there (adversarial). Scores are per way of
drawing; the positive class is yes. So a model that says yes to everything has an accuracy of 0.5 and a recall of 1, and
its yes-rate tells.

Intervals are over pictures, of each of which several things are asked; the released files of the three ways of drawing
even have the same questions of what is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation.classification.answer_parser import AnswerParser
from lightning_mllm.evaluation.open_answers.exact_match import OpenAnswer
from lightning_mllm.evaluation.tally import Tally
from lightning_mllm.statistics.shares import Interval, Share
from lightning_mllm.store.seeds import number_of

Sampling = Literal["random", "popular", "adversarial"]
Reading = Literal["named", "released"]
Said = tuple[int, int, int]  # how often "no", "yes" and neither was said
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
SCORES = ("accuracy", "precision", "recall", "f1", "yes_rate")

_NO, _YES, _NEITHER = range(3)
_PARSER = AnswerParser(("no", "yes"))
_RELEASED_NO = {"No", "not", "no"}


def sampling_of(kind: str) -> Sampling | None:
    """Return how a kind of question drew what is absent: "presence/popular" is "popular"; None of any other kind."""
    last = kind.rpartition("/")[2]
    return next((sampling for sampling in SAMPLINGS if sampling == last), None)


@dataclass(frozen=True)
class PopeScore:
    """What was said to N questions of presence.

    Attributes:
        absent: What was said of objects that are not there.
        present: What was said of objects that are.
        over_pictures: The shares of `shares` over pictures; without them each question has one of its own.
    """

    absent: Said
    present: Said
    over_pictures: Mapping[str, Share] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, answers: NDArray[np.int64]) -> PopeScore:
        """Make it of (answers, 4): way of drawing, truth, what was said, and number of the picture."""
        _, truth, said, picture = answers.T
        counts = np.zeros((2, 3), dtype=np.int64)
        np.add.at(counts, (truth, said), 1)
        yes, positive = said == _YES, truth == _YES
        parts = (said == truth, yes & positive, yes & positive, yes & positive, yes)
        wholes = (yes | True, yes, positive, yes | positive, yes | True)
        shares = (Share.of(picture[whole], part[whole]) for part, whole in zip(parts, wholes, strict=True))
        (tn, fp, neither), (fn, tp, nothing) = counts.tolist()
        return cls((tn, fp, neither), (fn, tp, nothing), dict(zip(SCORES, shares, strict=True)))

    @property
    def n(self) -> int:
        """Number of questions."""
        return sum(self.absent) + sum(self.present)

    def shares(self) -> dict[str, tuple[int, int]]:
        """Return the parts and wholes of `SCORES`, but for F1's: of J = TP / (TP + FP + FN), with F1 = 2 J / (1 + J).

        An answer that is neither counts as wrong, and as no yes.
        """
        (tn, fp, _), tp = self.absent, self.present[_YES]
        positives = sum(self.present)
        parts = (tp + tn, tp, tp, tp, tp + fp)
        wholes = (self.n, tp + fp, positives, positives + fp, self.n)
        return {name: (part, whole) for name, part, whole in zip(SCORES, parts, wholes, strict=True)}

    def value(self, name: str) -> float:
        """Return one of `SCORES`; NaN where it is not defined."""
        part, whole = self.shares()[name]
        share = part / whole if whole else math.nan
        return _f1(share) if name == "f1" else share

    def interval(self, name: str) -> Interval:
        """Return its 95 % interval, of F1 that of J; see `evaluation.shares`."""
        interval = (self.over_pictures.get(name) or Share.alone(*self.shares()[name])).interval
        return Interval(*map(_f1, interval)) if name == "f1" else interval

    def summary(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        scores: dict[str, Any] = {"n": self.n}
        for name in SCORES:
            scores |= {name: self.value(name), f"{name}_interval_95": list(self.interval(name))}
        return {**scores, "neither_rate": (self.absent[_NEITHER] + self.present[_NEITHER]) / self.n}


@dataclass(frozen=True)
class PopeResult:
    """How a model did.

    Attributes:
        overall: The scores over all questions.
        per_sampling: Way of drawing -> its scores, for those that were asked.
    """

    overall: PopeScore
    per_sampling: Mapping[Sampling, PopeScore]

    @classmethod
    def from_answers(cls, answers: Tensor) -> PopeResult | None:
        """Make the scores of (answers, 4), see `PopeMetrics.compute`; None if there was no question."""
        table = answers.cpu().numpy()
        asked = {sampling: table[table[:, 0] == number] for number, sampling in enumerate(SAMPLINGS)}
        scores = {sampling: PopeScore.of(own) for sampling, own in asked.items() if len(own)}
        return cls(PopeScore.of(table), scores) if scores else None

    def mean(self, name: str) -> float:
        """Return the mean of one of `SCORES` over the ways of drawing."""
        return fmean(score.value(name) for score in self.per_sampling.values())

    def summary(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON: over all questions, and per way of drawing."""
        per_sampling = {sampling: score.summary() for sampling, score in self.per_sampling.items()}
        return {**self.overall.summary(), "mean_f1": self.mean("f1"), "samplings": per_sampling}


class PopeMetrics(Tally):
    """Counts answers to questions of presence, across batches and processes.

    `compute` gives the answers of all processes, (answers, 4) int64: way of drawing, truth (no, yes), what was said
    (no, yes, neither) and number of the picture; `result` the scores.

    Args:
        reading: What an answer is taken to say. `named`: that of yes and no which stands in it as a word and is not
            denied ("I would not say yes"); neither, if both or none do. `released`: as POPE's released code has it,
            "no" if its first sentence has the word No, no or not, and "yes" whatever else it says.

    Raises:
        ConfigError: There is no such reading.
    """

    def __init__(self, *, reading: Reading = "named") -> None:
        super().__init__(columns=4)
        if reading not in get_args(Reading):
            raise ConfigError(f"POPE has no reading {reading!r}, only {' and '.join(map(repr, get_args(Reading)))}.")
        self.reading = reading

    def update(self, answers: Iterable[OpenAnswer]) -> None:
        """Count the answers of a batch to questions of presence, see `sampling_of`; others are left out.

        Raises:
            DataError: The right answer to one of them is neither yes nor no.
        """
        rows = []
        for answer in answers:
            if (sampling := sampling_of(answer.kind)) is None:
                continue
            truth = _named(answer.reference)
            if truth == _NEITHER:
                raise DataError(
                    f"Sample {answer.sample_id!r} of kind {answer.kind!r} has the answer {answer.reference!r}, but a "
                    "question of presence is answered by yes or no. Correct the answer, or rename the kind."
                )
            said = _named(answer.answer) if self.reading == "named" else _released(answer.answer)
            picture = number_of(answer.picture or answer.sample_id, signed=True)
            rows.append((SAMPLINGS.index(sampling), truth, said, picture))
        self.add(rows)

    def result(self) -> PopeResult | None:
        """Return the scores over all processes; None if there was no question of presence."""
        answers: Tensor = self.compute()
        return PopeResult.from_answers(answers)


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def _named(text: str) -> int:
    found = _PARSER.parse(text)
    return found if found in (_NO, _YES) else _NEITHER


def _released(text: str) -> int:
    words = text.partition(".")[0].replace(",", "").split(" ")
    return _NO if _RELEASED_NO & {*words} else _YES
