"""POPE: whether a model says yes to objects that are not there (Li et al., 2023, arXiv 2305.10355).

Each question asks for one object, and half of the questions for objects in the picture. Objects
that are absent are sampled at random, among the most frequent objects (popular), or among those
that often occur together with objects in the picture (adversarial). Scores are per way of sampling;
the positive class is yes. A model that says yes to everything has an accuracy of 0.5 and a recall
of 1, and its yes-rate shows it.

Intervals are over pictures, since several questions are about each. The released files of the three
ways of sampling even share their questions about objects that are present.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation.classification.answer_parser import AnswerParser
from lightning_mllm.evaluation.open_answers.exact_match import OpenAnswer
from lightning_mllm.evaluation.tally import Tally
from lightning_mllm.statistics.interval import Interval
from lightning_mllm.statistics.shares import Share
from lightning_mllm.store.seeds import seed_number_of

Sampling = Literal["random", "popular", "adversarial"]
Reading = Literal["named", "released"]
Said = tuple[int, int, int]  # how often the answer was "no", "yes" and neither
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
SCORES = ("accuracy", "precision", "recall", "f1", "yes_rate")

_NO, _YES, _NEITHER = range(3)
_PARSER = AnswerParser(("no", "yes"))
_RELEASED_NO = {"No", "not", "no"}


def pope_sampling(kind: str) -> Sampling | None:
    """Return how a kind's absent objects were sampled, e.g. "popular" for "presence/popular".

    Returns:
        None for a kind that does not ask for the presence of an object.
    """
    last = kind.rpartition("/")[2]
    for sampling in SAMPLINGS:
        if sampling == last:
            return sampling
    return None


@dataclass(frozen=True)
class PopeScore:
    """The answers to N questions of presence.

    Attributes:
        absent: Answers about objects that are not in the picture.
        present: Answers about objects that are in the picture.
        over_pictures: Score -> its share over pictures; empty if each question is about a picture
            of its own.
    """

    absent: Said
    present: Said
    over_pictures: Mapping[str, Share] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, answers: NDArray[np.int64]) -> PopeScore:
        """Compute the score of (answers, 4): see `PopeMetrics.compute`."""
        truth, said, picture = answers[:, 1], answers[:, 2], answers[:, 3]
        counts = np.zeros((2, 3), dtype=np.int64)
        np.add.at(counts, (truth, said), 1)
        yes, positive = said == _YES, truth == _YES
        every = np.ones_like(yes)
        masks = {  # score -> what is counted, and among what
            "accuracy": (said == truth, every),
            "precision": (yes & positive, yes),
            "recall": (yes & positive, positive),
            "f1": (yes & positive, yes | positive),
            "yes_rate": (yes, every),
        }
        shares: dict[str, Share] = {}
        for name, (part, whole) in masks.items():
            shares[name] = Share.of(picture[whole], part[whole])
        absent, present = counts.tolist()
        return cls(cast(Said, tuple(absent)), cast(Said, tuple(present)), shares)

    @property
    def n(self) -> int:
        """Number of questions."""
        return sum(self.absent) + sum(self.present)

    def shares(self) -> dict[str, tuple[int, int]]:
        """Return score -> (part, whole); for F1 those of J = TP / (TP + FP + FN): see `_f1_of`.

        An answer that is neither yes nor no counts as wrong, and not as yes.
        """
        true_no, false_yes = self.absent[_NO], self.absent[_YES]
        true_yes, positives = self.present[_YES], sum(self.present)
        return {
            "accuracy": (true_yes + true_no, self.n),
            "precision": (true_yes, true_yes + false_yes),
            "recall": (true_yes, positives),
            "f1": (true_yes, positives + false_yes),
            "yes_rate": (true_yes + false_yes, self.n),
        }

    def value(self, name: str) -> float:
        """Return one of `SCORES`; NaN where it is not defined."""
        part, whole = self.shares()[name]
        share = part / whole if whole else math.nan
        return _f1_of(share) if name == "f1" else share

    def interval(self, name: str) -> Interval:
        """Return the 95 % interval of one of `SCORES`; for F1 from that of J."""
        share = self.over_pictures.get(name) or Share.alone(*self.shares()[name])
        if name == "f1":
            return Interval(_f1_of(share.interval.low), _f1_of(share.interval.high))
        return share.interval

    def summary(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        scores: dict[str, Any] = {"n": self.n}
        for name in SCORES:
            scores |= {name: self.value(name), f"{name}_interval_95": list(self.interval(name))}
        return {**scores, "neither_rate": (self.absent[_NEITHER] + self.present[_NEITHER]) / self.n}


@dataclass(frozen=True)
class PopeResult:
    """How well a model answered questions of presence.

    Attributes:
        overall: The scores over all questions.
        per_sampling: Way of sampling -> scores, for those that were asked.
    """

    overall: PopeScore
    per_sampling: Mapping[Sampling, PopeScore]

    @classmethod
    def from_answers(cls, answers: Tensor) -> PopeResult | None:
        """Compute the scores of (answers, 4), see `PopeMetrics.compute`; None if there are none."""
        table = answers.cpu().numpy()
        scores: dict[Sampling, PopeScore] = {}
        for number, sampling in enumerate(SAMPLINGS):
            own = table[table[:, 0] == number]
            if len(own):
                scores[sampling] = PopeScore.of(own)
        return cls(PopeScore.of(table), scores) if scores else None

    def mean(self, name: str) -> float:
        """Return the mean of one of `SCORES` over the ways of sampling."""
        return fmean(score.value(name) for score in self.per_sampling.values())

    def summary(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON: over all questions, and per way of sampling."""
        per_sampling = {sampling: score.summary() for sampling, score in self.per_sampling.items()}
        return {**self.overall.summary(), "mean_f1": self.mean("f1"), "samplings": per_sampling}


class PopeMetrics(Tally):
    """Counts answers to questions of presence, across batches and processes.

    `compute` returns the answers of all processes, (answers, 4) int64: way of sampling, truth (no,
    yes), answer (no, yes, neither) and number of the picture; `result` returns the scores.

    Args:
        reading: How an answer is interpreted. `named`: as yes or no, whichever occurs in it as a
            word and is not denied ("I would not say yes"); as neither, if both or none do.
            `released`: as in POPE's released code, "no" if its first sentence has the word No, no
            or not, and "yes" otherwise.

    Raises:
        ConfigError: There is no such reading.
    """

    def __init__(self, *, reading: Reading = "named") -> None:
        super().__init__(columns=4)
        if reading not in get_args(Reading):
            known = " and ".join(map(repr, get_args(Reading)))
            raise ConfigError(f"POPE has no reading {reading!r}, only {known}.")
        self.reading = reading

    def update(self, answers: Iterable[OpenAnswer]) -> None:
        """Count the answers to questions of presence, see `pope_sampling`; others are left out.

        Raises:
            DataError: The right answer to one of them is neither yes nor no.
        """
        rows = []
        for answer in answers:
            sampling = pope_sampling(answer.kind)
            if sampling is None:
                continue
            truth = _read_named(answer.reference)
            if truth == _NEITHER:
                raise DataError(
                    f"Sample {answer.sample_id!r} of kind {answer.kind!r} has the answer "
                    f"{answer.reference!r}, but a question of presence is answered by yes or no. "
                    "Correct the answer, or rename the kind."
                )
            read = _read_named if self.reading == "named" else _read_released
            picture = seed_number_of(answer.picture or answer.sample_id, signed=True)
            rows.append((SAMPLINGS.index(sampling), truth, read(answer.answer), picture))
        self.add(rows)

    def result(self) -> PopeResult | None:
        """Return the scores over all processes; None if there was no question of presence."""
        answers: Tensor = self.compute()
        return PopeResult.from_answers(answers)


def _f1_of(jaccard: float) -> float:
    """F1 = 2 J / (1 + J), with J = TP / (TP + FP + FN)."""
    return 2 * jaccard / (1 + jaccard)


def _read_named(text: str) -> int:
    found = _PARSER.parse(text)
    return found if found in (_NO, _YES) else _NEITHER


def _read_released(text: str) -> int:
    words = text.partition(".")[0].replace(",", "").split(" ")
    return _NO if _RELEASED_NO & {*words} else _YES
