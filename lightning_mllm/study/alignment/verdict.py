"""Does the alignment score go with task accuracy, and against hallucination? Over the checkpoints of a study.

Shukor and Cord (2024, arXiv 2405.16700, abstract and Fig. 9) say that it does; their figures show curves of at most
six checkpoints side by side, and no coefficient. Here each part of a claim is a Spearman correlation over checkpoints,
since the claim is one of order. Its p-values are adjusted over all parts of both claims (Holm), per reading of the
score, those that are not there yet counting as 1; then a part *holds* if the correlation has the sign that is claimed
and p <= 0.05, *does not* if it has the other one, and is *undecided* otherwise. A claim holds where all its parts do,
and does not where one does not. Checkpoints of one training, or of what it began from, are no independent draws: what
is tested is the correlation of the means of each origin.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_mllm.statistics.correlation import Correlation, correlate, group_means, smallest_n, smallest_p
from lightning_mllm.statistics.decisions import Decision, all_of, decide, holm
from lightning_mllm.statistics.interval import ALPHA, NO_INTERVAL
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.study.alignment.scores import Score
from lightning_mllm.study.alignment.study import ALIGNMENT, CAPTIONS, PRESENCE, TASK, AlignmentStudy

TEST = "Spearman correlation over the means of each origin, permutation test, Holm over the parts of all claims"
WITH_ACCURACY = "the alignment score rises with task accuracy"
AGAINST_HALLUCINATION = "the alignment score falls with hallucination"
NOT_CLAIMED = (f"{PRESENCE}/yes_rate", f"{CAPTIONS}/recall")  # shown beside the claims

_OF_DRAWING = ("accuracy", "f1", "yes_rate")
_NOTHING = Correlation(math.nan, NO_INTERVAL, math.nan, 0)


@dataclass(frozen=True)
class Association:
    """How a score goes with a measure.

    Attributes:
        reading: Of the alignment score.
        measure: What it is set beside.
        pearson: Of the numbers.
        spearman: Of their ranks.
        of_origins: Of the ranks of the means of each origin: a training, and what it began from, is one.
    """

    reading: str
    measure: str
    pearson: Correlation
    spearman: Correlation
    of_origins: Correlation

    @property
    def origins(self) -> int:
        """How many origins are behind the N."""
        return self.of_origins.n


@dataclass(frozen=True)
class AlignmentVerdict:
    """What is known of a claim, or of a part of it.

    Attributes:
        reading: Of the alignment score.
        claim: The claim.
        part: The measure that it is about; empty for the whole.
        decision: What is known.
        checkpoints: Number of checkpoints, the least of the parts.
        origins: How many origins they are of, the least of the parts.
        spearman: Of a part, over checkpoints.
        of_origins: Of a part, over the means of each origin.
        adjusted_p: The p-value of that, after Holm.
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


def claims_of(study: AlignmentStudy) -> dict[str, dict[str, int]]:
    """Return the claims that a study is able to speak to: claim -> measure -> sign of the correlation."""
    accuracies = {f"{TASK}/{name}/accuracy": 1 for name in study.tasks}
    hallucination = {f"{PRESENCE}/{name}": 1 for name in ("accuracy", "f1") if study.presence}
    hallucination |= {f"{CAPTIONS}/{name}": -1 for name in ("chair_i", "chair_s") if study.captions}
    claims = {WITH_ACCURACY: accuracies, AGAINST_HALLUCINATION: hallucination}
    return {claim: signs for claim, signs in claims.items() if signs}


def measures_of(study: AlignmentStudy, scores: Sequence[Score]) -> list[str]:
    """Return what the alignment score is set beside, each once, in order; for POPE over all ways of drawing."""
    shown = {*NOT_CLAIMED, *(measure for signs in claims_of(study).values() for measure in signs)}
    return [name for name in dict.fromkeys(score.measure for score in scores) if name in shown]


def measures_of_drawing(scores: Sequence[Score]) -> list[str]:
    """Return POPE's measures per way of drawing what is absent, which no claim is about: `presence/popular/f1`."""
    names = (name.split("/") for name in dict.fromkeys(score.measure for score in scores))
    return ["/".join(parts) for parts in names if len(parts) == 3 and parts[0] == PRESENCE and parts[2] in _OF_DRAWING]


def associate(study: AlignmentStudy, scores: Sequence[Score]) -> list[Association]:
    """Return the correlations of each reading with each measure, over the checkpoints that have both."""
    table = {(score.checkpoint, score.measure): score.value for score in scores}
    checkpoints = list(dict.fromkeys(score.checkpoint for score in scores))
    origins = study.origins()
    groups = [origins[checkpoint] for checkpoint in checkpoints]

    def column(measure: str) -> Floats:
        return np.array([table.get((checkpoint, measure)) for checkpoint in checkpoints], dtype=np.float64)

    found = []
    for reading in study.readings:
        ours = column(f"{ALIGNMENT}/{reading}")
        for measure in [*measures_of(study, scores), *measures_of_drawing(scores)]:
            theirs = column(measure)
            pearson = correlate(ours, theirs, "pearson", study.resamples)
            spearman = correlate(ours, theirs, "spearman", study.resamples)
            of_origins = correlate(*group_means(ours, theirs, groups), "spearman", study.resamples)
            found.append(Association(reading, measure, pearson, spearman, of_origins))
    return found


def verdicts(study: AlignmentStudy, associations: Sequence[Association]) -> list[AlignmentVerdict]:
    """Decide the claims, whole (part "") and part by part, for each reading of the score."""
    claims = claims_of(study)
    return [
        verdict
        for reading in study.readings
        for verdict in _judge(reading, claims, {a.measure: a for a in associations if a.reading == reading})
    ]


def too_few(study: AlignmentStudy, associations: Sequence[Association]) -> str:
    """Return a plain statement if there are too few checkpoints for any verdict; empty if there are enough."""
    n = max((each.origins for each in associations), default=0)
    points = "checkpoints" if n == max((each.spearman.n for each in associations), default=0) else "origins"
    tests = sum(map(len, claims_of(study).values()))
    if n >= (least := smallest_n(tests)):
        return ""
    return (
        f"N = {n} {points} are too few to say anything: even if the score and a measure put them in the very same "
        f"order, the p-value would be {smallest_p(n):.2g} (2 of N! orders), and with {tests} measures tested it must "
        f"be {ALPHA / tests:.2g} or less. From N = {least} on something can be said. Below are numbers, not findings."
    )


def not_independent(study: AlignmentStudy, scores: Sequence[Score]) -> str:
    """Return a plain statement if checkpoints of one training are among those that have scores; else empty."""
    origins, checkpoints = study.origins(), {score.checkpoint for score in scores}
    counts = Counter(origins[checkpoint] for checkpoint in checkpoints)
    trainings = {name: count for name, count in counts.items() if count > 1}
    if not trainings:
        return ""
    return (
        f"{sum(trainings.values())} of the {len(checkpoints)} checkpoints share a training, or what it began from, "
        f"with others ({', '.join(f'{name}: {count}' for name, count in trainings.items())}), so that they are no "
        f"independent draws: {len(checkpoints)} checkpoints are of {len(counts)} origin{'s' * (len(counts) > 1)}. The "
        "p-values and intervals of the correlations below count checkpoints, and are too sure of themselves: what "
        "grows along a training goes with whatever else does. Verdicts are about the means of each origin: they need "
        "as many origins as they would need independent checkpoints."
    )


def _judge(
    reading: str, claims: Mapping[str, Mapping[str, int]], found: Mapping[str, Association]
) -> Iterator[AlignmentVerdict]:
    """Decide the claims for a reading of the score, by how it goes with each measure, over origins."""
    measures = [measure for signs in claims.values() for measure in signs]
    spearman = {measure: found[measure].spearman if measure in found else _NOTHING for measure in measures}
    tested = {measure: found[measure].of_origins if measure in found else _NOTHING for measure in measures}
    ps = [1.0 if math.isnan(each.p) else each.p for each in tested.values()]
    adjusted = dict(zip(tested, holm(ps), strict=True))
    for claim, signs in claims.items():
        decisions = {name: decide(sign * tested[name].value, adjusted[name]) for name, sign in signs.items()}
        least = min(spearman[name].n for name in signs), min(tested[name].n for name in signs)
        yield AlignmentVerdict(reading, claim, "", all_of([*decisions.values()]), *least)
        for name, decision in decisions.items():
            own, of_origins = spearman[name], tested[name]
            numbers = own.value, of_origins.value, adjusted[name]
            yield AlignmentVerdict(reading, claim, name, decision, own.n, of_origins.n, *numbers)
