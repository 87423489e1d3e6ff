"""The rows of grounding."""

from __future__ import annotations

from dataclasses import dataclass

OWN, OTHERS, BLIND, SHUFFLED = "own", "others", "blind", "shuffled"


@dataclass(frozen=True, kw_only=True)
class GroundingRow:
    """A sample and a picture that its answer is scored with.

    Attributes:
        sample_id: Id of the sample.
        kind: Its kind; empty without one.
        picture: Name of its own picture.
        measured: Always true; other analyses leave samples out.
        condition: `own`, `blind`, `shuffled`, or the number of the other picture, from 1 on.
        shown: Name of the picture that is shown.
        log_likelihood: Of all answer tokens, in nats.
        tokens: Number of answer tokens.
    """

    sample_id: str
    kind: str
    picture: str
    measured: bool = True
    condition: str
    shown: str
    log_likelihood: float
    tokens: int
