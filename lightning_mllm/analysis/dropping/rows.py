"""The rows of token dropping."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan


@dataclass(frozen=True, kw_only=True)
class DroppingRow:
    """A question and a case; a question that is left out has one row, without a case.

    Attributes:
        sample_id: Id of the question.
        kind: Kind of the question.
        picture: Name of the picture that the question is about.
        correct: Whether the model answers right with nothing dropped.
        measured: Whether the question is asked with tokens dropped.
        layer: First layer without the tokens.
        percent: Share of the visual tokens that are dropped.
        choice: What decides which stay, e.g. `least attention`.
        seed: Seed of a random choice.
        right: 1 if the model answers right without the tokens, else 0; NaN for a question without
            a kind.
        flops: Operations of the sample's pass through the decoder, without padding.
        flops_clean: Operations of that pass with nothing dropped.
        seconds: Time of the batch's pass, per sample: in the row of the batch's first sample, NaN
            in the rows of others, so that it counts once.
        seconds_clean: Time of that pass with nothing dropped.
    """

    sample_id: str
    kind: str
    picture: str
    correct: bool
    measured: bool = True
    layer: int = -1
    percent: float = nan
    choice: str = ""
    seed: int = 0
    right: float = nan
    flops: float = nan
    flops_clean: float = nan
    seconds: float = nan
    seconds_clean: float = nan
