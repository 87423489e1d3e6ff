"""The rows of steering: of a sweep between classes, and of shifts."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan


@dataclass(frozen=True, kw_only=True)
class SteeringRow:
    """A question and a vector; a question that is left out has one row, without a vector.

    D is the logit with which the target's answer begins, minus that of the source's, at LAST.

    Attributes:
        sample_id: Id of the question.
        kind: Kind of the question.
        picture: Name of the picture that the question is about.
        correct: Whether the model answers right without a vector.
        measured: Whether vectors are tried on it.
        picture_read: Whether it is left out because the vector was read from its picture.
        steer: Where the vector was read and where it is added.
        start: First layer in front of which it is added.
        stop: The layer after the last one.
        scale: What it is multiplied by.
        size: Number of positions that are steered; with 0 the row counts nowhere.
        before: D without a vector.
        after: D with the vector.
        target: 1 if the model then says the target first, else 0.
        source: 1 if it still says the source first, else 0.
        random_after: Mean D with the random vectors of equal norm that the question is tried with.
        random_target: Share of random vectors with which it says the target.
        random_source: Share of random vectors with which it still says the source.
        random_as_strong: Share of random vectors with which D is at least as large.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    picture_read: bool = False
    steer: str = ""
    start: int = -1
    stop: int = -1
    scale: float = nan
    size: int = 0
    before: float = nan
    after: float = nan
    target: float = nan
    source: float = nan
    random_after: float = nan
    random_target: float = nan
    random_source: float = nan
    random_as_strong: float = nan


@dataclass(frozen=True, kw_only=True)
class ShiftRow:
    """A question and a shift vector; a question that is left out has one row, without one.

    An answer is right here if it begins with the first token of the right answer.

    Attributes:
        sample_id: Id of the question.
        kind: Kind of the question.
        picture: Name of the picture that the question is about.
        correct: Whether the model before fine-tuning answers right, by exact match.
        measured: Whether vectors are tried on it.
        picture_read: Whether it is left out because the vector was read from its picture.
        steer: Where the vector was read and where it is added.
        start: First layer in front of which it is added.
        stop: The layer after the last one.
        scale: What it is multiplied by.
        size: Number of positions that are steered; with 0 the row counts nowhere.
        before: 1 if the model before fine-tuning begins right, else 0.
        after: 1 if the fine-tuned model begins right, else 0.
        shifted: 1 if the model before begins right with the shift of the question's class, else 0.
        other: 1 if it does with the mean shift of the other classes, else 0; NaN without others.
        random: Share of random vectors of equal norm with which it begins right.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    picture_read: bool = False
    steer: str = ""
    start: int = -1
    stop: int = -1
    scale: float = nan
    size: int = 0
    before: float = nan
    after: float = nan
    shifted: float = nan
    other: float = nan
    random: float = nan
