"""The paper's claims, each about measures that rise or fall with the alignment score."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_mllm.study.alignment.scores import CheckpointScore
from lightning_mllm.study.alignment.study import CAPTIONS, PRESENCE, TASK, AlignmentStudy

WITH_ACCURACY = "the alignment score rises with task accuracy"
AGAINST_HALLUCINATION = "the alignment score falls with hallucination"
NOT_CLAIMED = (f"{PRESENCE}/yes_rate", f"{CAPTIONS}/recall")  # shown beside the claims

_SHOWN_BY_SAMPLING = ("accuracy", "f1", "yes_rate")

Claims = dict[str, dict[str, int]]  # claim -> measure -> sign of the correlation


def alignment_claims(study: AlignmentStudy) -> Claims:
    """Return the claims about which a study will have results."""
    accuracies = {f"{TASK}/{name}/accuracy": 1 for name in study.tasks}
    hallucination: dict[str, int] = {}
    if study.presence:
        hallucination |= {f"{PRESENCE}/accuracy": 1, f"{PRESENCE}/f1": 1}
    if study.captions:
        hallucination |= {f"{CAPTIONS}/chair_i": -1, f"{CAPTIONS}/chair_s": -1}
    claims = {WITH_ACCURACY: accuracies, AGAINST_HALLUCINATION: hallucination}
    return {claim: signs for claim, signs in claims.items() if signs}


def measures_of_claims(claims: Claims) -> list[str]:
    """Return the measures of all claims."""
    measures: list[str] = []
    for signs in claims.values():
        measures += signs
    return measures


def claimed_measures(study: AlignmentStudy, scores: Sequence[CheckpointScore]) -> list[str]:
    """Return what the alignment score is compared with, each measure once, in order.

    POPE's measures are those over all ways of drawing absent objects.
    """
    shown = {*NOT_CLAIMED, *measures_of_claims(alignment_claims(study))}
    return [measure for measure in _measures_in(scores) if measure in shown]


def claimed_measures_by_sampling(scores: Sequence[CheckpointScore]) -> list[str]:
    """Return POPE's measures per way of drawing absent objects, such as `presence/popular/f1`.

    No claim is about them.
    """
    found = []
    for measure in _measures_in(scores):
        parts = measure.split("/")
        if len(parts) == 3 and parts[0] == PRESENCE and parts[2] in _SHOWN_BY_SAMPLING:
            found.append(measure)
    return found


def _measures_in(scores: Sequence[CheckpointScore]) -> list[str]:
    return list(dict.fromkeys(score.measure for score in scores))
