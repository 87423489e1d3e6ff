"""How the alignment score goes with the other measures, over the checkpoints of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_mllm.statistics.correlation import Correlation, correlate, correlated_group_means
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.study.alignment.claims import claimed_measures, claimed_measures_by_sampling
from lightning_mllm.study.alignment.scores import CheckpointScore
from lightning_mllm.study.alignment.study import ALIGNMENT, AlignmentStudy


@dataclass(frozen=True)
class AlignmentCorrelation:
    """How an alignment score goes with another measure.

    Attributes:
        reading: Which alignment score it is.
        measure: The measure that it is compared with.
        pearson: Correlation of the numbers.
        spearman: Correlation of their ranks.
        of_origins: Correlation of the ranks of the means of each origin. A training, and the
            checkpoint that it began from, are one origin.
    """

    reading: str
    measure: str
    pearson: Correlation
    spearman: Correlation
    of_origins: Correlation

    @property
    def origins(self) -> int:
        """Number of origins of the checkpoints."""
        return self.of_origins.n


def correlate_alignment(
    study: AlignmentStudy, scores: Sequence[CheckpointScore]
) -> list[AlignmentCorrelation]:
    """Return the correlations of each reading with each measure, over the checkpoints with both."""
    table = table_to_correlate(scores)
    checkpoints = correlated_checkpoints(scores)
    origins = study.origins()
    groups = [origins[checkpoint] for checkpoint in checkpoints]
    found = []
    for reading in study.readings:
        ours = _column(table, checkpoints, f"{ALIGNMENT}/{reading}")
        for measure in [*claimed_measures(study, scores), *claimed_measures_by_sampling(scores)]:
            theirs = _column(table, checkpoints, measure)
            means = correlated_group_means(ours, theirs, groups)
            association = AlignmentCorrelation(
                reading=reading,
                measure=measure,
                pearson=correlate(ours, theirs, "pearson", study.resamples),
                spearman=correlate(ours, theirs, "spearman", study.resamples),
                of_origins=correlate(*means, "spearman", study.resamples),
            )
            found.append(association)
    return found


def correlated_checkpoints(scores: Iterable[CheckpointScore]) -> list[str]:
    """Return the checkpoints that have scores, in order."""
    return list(dict.fromkeys(score.checkpoint for score in scores))


def table_to_correlate(scores: Iterable[CheckpointScore]) -> dict[tuple[str, str], CheckpointScore]:
    """Return the scores by checkpoint and measure."""
    return {(score.checkpoint, score.measure): score for score in scores}


def _column(
    table: Mapping[tuple[str, str], CheckpointScore], checkpoints: Sequence[str], measure: str
) -> Floats:
    """Return a measure of all checkpoints, NaN where a checkpoint has no number."""
    values = []
    for checkpoint in checkpoints:
        score = table.get((checkpoint, measure))
        values.append(None if score is None else score.value)
    return np.array(values, dtype=np.float64)
