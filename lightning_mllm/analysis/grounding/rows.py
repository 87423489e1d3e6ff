"""The rows of grounding."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

OWN, OTHERS, BLIND, SHUFFLED = "own", "others", "blind", "shuffled"


@dataclass(frozen=True, kw_only=True)
class GroundingRow:
    """A sample and a picture that its answer is scored with; one that is left out has one row.

    Attributes:
        sample_id: Id of the sample.
        kind: Kind of the sample; empty without one.
        picture: Name of the sample's own picture.
        measured: Whether the sample has one picture and an answer; others are left out.
        condition: `own`, `blind`, `shuffled`, or the number of the other picture, from 1 on.
        shown: Name of the picture that is shown.
        log_likelihood: Log-probability of all answer tokens, in nats.
        tokens: Number of answer tokens.
    """

    sample_id: str
    kind: str
    picture: str
    measured: bool = True
    condition: str = ""
    shown: str = ""
    log_likelihood: float = nan
    tokens: int = 0
