"""Does the alignment score rise with task accuracy, and fall with hallucination, over checkpoints?

Shukor and Cord (2024, arXiv 2405.16700, abstract and Fig. 9) say that it does. Their figures show
curves of at most six checkpoints side by side, and no coefficient. Here each part of a claim is a
Spearman correlation over checkpoints, since the claim is about an order. Per reading of the score,
its p-values are adjusted over all parts of both claims (Holm); a part without results counts as
p = 1. A part then *holds* if the correlation has the sign that is claimed and p <= 0.05, *does not*
if it has the other sign and p <= 0.05, and is *undecided* otherwise. A claim holds where all its
parts do, and does not where one part does not. Checkpoints of one training, or of what it began
from, are not independent draws: what is tested is the correlation of the means of each origin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_mllm.statistics.correlation import (
    Correlation,
    smallest_correlation_n,
    smallest_correlation_p,
)
from lightning_mllm.statistics.decisions import Decision, decide, decide_all, decide_by_holm
from lightning_mllm.statistics.interval import ALPHA, NO_INTERVAL
from lightning_mllm.study.alignment.claims import Claims, alignment_claims, measures_of_claims
from lightning_mllm.study.alignment.correlations import AlignmentCorrelation
from lightning_mllm.study.alignment.scores import CheckpointScore
from lightning_mllm.study.alignment.study import AlignmentStudy

TEST = (
    "Spearman correlation over the means of each origin, permutation test, Holm over the parts of "
    "all claims"
)

_NOTHING = Correlation(math.nan, NO_INTERVAL, math.nan, 0)


@dataclass(frozen=True)
class AlignmentVerdict:
    """What is known of a claim, or of a part of it.

    Attributes:
        reading: Which alignment score it is about.
        claim: The claim, as a sentence.
        part: The measure that the part is about; empty for the whole.
        decision: Whether it holds, does not, or is undecided.
        checkpoints: Number of checkpoints, the least of the parts.
        origins: Number of origins of the checkpoints, the least of the parts.
        spearman: Correlation of a part over checkpoints.
        of_origins: Correlation of a part over the means of each origin.
        adjusted_p: The p-value of `of_origins` after Holm's correction.
    """

    reading: str
    claim: str
    part: str
    decision: Decision
    checkpoints: int
    origins: int
    spearman: float | None = None
    of_origins: float | None = None
    adjusted_p: float | None = None


def alignment_verdicts(
    study: AlignmentStudy, associations: Sequence[AlignmentCorrelation]
) -> list[AlignmentVerdict]:
    """Decide the claims, whole (part "") and part by part, for each reading of the score."""
    claims = alignment_claims(study)
    found: list[AlignmentVerdict] = []
    for reading in study.readings:
        by_measure = {each.measure: each for each in associations if each.reading == reading}
        found += _judge(reading, claims, by_measure)
    return found


def _judge(
    reading: str, claims: Claims, found: Mapping[str, AlignmentCorrelation]
) -> Iterator[AlignmentVerdict]:
    """Decide the claims for a reading of the score, by its correlation with each measure."""
    spearman: dict[str, Correlation] = {}
    of_origins: dict[str, Correlation] = {}
    p_values = []
    for measure in measures_of_claims(claims):
        association = found.get(measure)
        spearman[measure] = _NOTHING if association is None else association.spearman
        of_origins[measure] = _NOTHING if association is None else association.of_origins
        p_value = of_origins[measure].p
        p_values.append(1.0 if math.isnan(p_value) else p_value)
    adjusted = dict(zip(of_origins, decide_by_holm(p_values), strict=True))
    for claim, signs in claims.items():
        decisions = {}
        for measure, sign in signs.items():
            decisions[measure] = decide(sign * of_origins[measure].value, adjusted[measure])
        yield AlignmentVerdict(
            reading=reading,
            claim=claim,
            part="",
            decision=decide_all(list(decisions.values())),
            checkpoints=min(spearman[measure].n for measure in signs),
            origins=min(of_origins[measure].n for measure in signs),
        )
        for measure, decision in decisions.items():
            yield AlignmentVerdict(
                reading=reading,
                claim=claim,
                part=measure,
                decision=decision,
                checkpoints=spearman[measure].n,
                origins=of_origins[measure].n,
                spearman=spearman[measure].value,
                of_origins=of_origins[measure].value,
                adjusted_p=adjusted[measure],
            )


def too_few_for_alignment_verdict(
    study: AlignmentStudy, associations: Sequence[AlignmentCorrelation]
) -> str:
    """Return a plain statement if there are too few checkpoints for any verdict; else empty."""
    checkpoints = max((each.spearman.n for each in associations), default=0)
    n = max((each.origins for each in associations), default=0)
    tests = len(measures_of_claims(alignment_claims(study)))
    least = smallest_correlation_n(tests)
    if n >= least:
        return ""
    points = "checkpoints" if n == checkpoints else "origins"
    return (
        f"N = {n} {points} are too few to say anything: even if the score and a measure put them "
        f"in the very same order, the p-value would be {smallest_correlation_p(n):.2g} (2 of N! "
        f"orders), and with {tests} measures tested it must be {ALPHA / tests:.2g} or "
        f"less. From N = {least} on something can be said. Below are numbers, not findings."
    )


def not_independent_for_alignment_verdict(
    study: AlignmentStudy, scores: Sequence[CheckpointScore]
) -> str:
    """Return a plain statement if checkpoints of one training have scores; else empty."""
    origins = study.origins()
    checkpoints = {score.checkpoint for score in scores}
    counts = Counter(origins[checkpoint] for checkpoint in checkpoints)
    trainings = {name: count for name, count in counts.items() if count > 1}
    if not trainings:
        return ""
    listed = ", ".join(f"{name}: {count}" for name, count in trainings.items())
    plural = "s" if len(counts) > 1 else ""
    return (
        f"{sum(trainings.values())} of the {len(checkpoints)} checkpoints share a training, or "
        f"what it began from, with others ({listed}), so that they are not independent draws: "
        f"{len(checkpoints)} checkpoints are of {len(counts)} origin{plural}. The p-values and "
        "intervals of the correlations below count checkpoints, and are too small: whatever grows "
        "during a training correlates with everything else that does. Verdicts are about the means "
        "of each origin: they need as many origins as they would need independent checkpoints."
    )
