"""The rows of computation skipping."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan


@dataclass(frozen=True, kw_only=True)
class SkippingRow:
    """A question and a case; a question that is left out has one row, without a case.

    Attributes:
        sample_id: Id of the question.
        kind: Kind of the question.
        picture: Name of the picture that the question is about.
        correct: Whether the model answers right with nothing skipped.
        measured: Whether the question is asked with skips.
        computation: Which computation is skipped.
        start: First layer that skips.
        percent: Share of the tokens that skip it, of those that qualify.
        right: 1 if the model answers right while it is skipped, else 0; NaN for a question without
            a kind.
        flops: Operations of the sample's pass through the decoder, without padding.
        flops_clean: Operations of that pass with nothing skipped.
        seconds: Time of the batch's pass, per sample: in the row of the batch's first sample, NaN
            in the rows of others, so that it counts once.
        seconds_clean: Time of that pass with nothing skipped.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    computation: str = ""
    start: int = -1
    percent: float = nan
    right: float = nan
    flops: float = nan
    flops_clean: float = nan
    seconds: float = nan
    seconds_clean: float = nan
