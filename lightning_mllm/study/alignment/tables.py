"""Scores, correlations and verdicts of the alignment study, as rows and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lightning_mllm.statistics.correlation import Correlation
from lightning_mllm.study.alignment.correlations import AlignmentCorrelation, correlated_checkpoints
from lightning_mllm.study.alignment.scores import CheckpointScore
from lightning_mllm.study.alignment.verdict import TEST, AlignmentVerdict
from lightning_mllm.study.engine.markdown import markdown

CORRELATION_COLUMNS = (
    *("score", "measure", "origins"),
    *("pearson_value", "pearson_low_95", "pearson_high_95", "pearson_p", "pearson_n"),
    *("spearman_value", "spearman_low_95", "spearman_high_95", "spearman_p", "spearman_n"),
)
VERDICT_COLUMNS = (
    *("score", "claim", "part", "verdict", "spearman", "spearman_of_origins", "p_holm"),
    *("checkpoints", "origins", "test"),
)


def correlation_table_row(each: AlignmentCorrelation) -> list[Any]:
    """Return the row of the CSV file."""
    return [
        *(each.reading, each.measure, each.origins),
        *_correlation_cells(each.pearson),
        *_correlation_cells(each.spearman),
    ]


def alignment_verdict_table_row(each: AlignmentVerdict) -> list[Any]:
    """Return the row of the CSV file."""
    return [
        *(each.reading, each.claim, each.part, str(each.decision)),
        *(each.spearman, each.of_origins, each.adjusted_p),
        *(each.checkpoints, each.origins, TEST),
    ]


def _correlation_cells(each: Correlation) -> tuple[float, ...]:
    return each.value, *each.interval, each.p, each.n


def alignment_scores_table(scores: Sequence[CheckpointScore], measures: Sequence[str]) -> str:
    """Return a row per checkpoint, with some of its numbers."""
    texts = {}
    for score in scores:
        interval = _interval_text(score.low_95, score.high_95)
        texts[score.checkpoint, score.measure] = f"{_number_text(score.value)}{interval}"
    rows = []
    for checkpoint in correlated_checkpoints(scores):
        numbers = [texts.get((checkpoint, measure), "") for measure in measures]
        rows.append([checkpoint, *numbers])
    return markdown(["checkpoint", *measures], rows)


def correlations_table(associations: Iterable[AlignmentCorrelation]) -> str:
    """Return a row per reading and measure."""
    rows = []
    for each in associations:
        size = _size_text(each.spearman.n, each.origins)
        pearson, spearman = _correlation_text(each.pearson), _correlation_text(each.spearman)
        rows.append([each.reading, each.measure, size, pearson, spearman])
    return markdown(["score", "measure", "N", "Pearson", "Spearman"], rows)


def alignment_verdicts_table(found: Iterable[AlignmentVerdict]) -> str:
    """Return a row per reading, claim and part."""
    rows = []
    for each in found:
        name, decision = f"**{each.claim}**", f"**{each.decision}**"
        if each.part:
            name, decision = f"- {each.part}", str(each.decision)
            decision += f" ({_number_text(each.of_origins)}, {_p_text(each.adjusted_p)})"
        rows.append([each.reading, name, decision, _size_text(each.checkpoints, each.origins)])
    return markdown(["score", "claim", "verdict", "N"], rows)


def _size_text(checkpoints: int, origins: int) -> str:
    if origins == checkpoints:
        return str(checkpoints)
    return f"{checkpoints} of {origins} origin{'' if origins == 1 else 's'}"


def _correlation_text(each: Correlation) -> str:
    return f"{_number_text(each.value)}{_interval_text(*each.interval)}, {_p_text(each.p)}"


def _interval_text(low: float | None, high: float | None) -> str:
    ends = _number_text(low), _number_text(high)
    return "" if "-" in ends else f" [{', '.join(ends)}]"


def _number_text(value: float | None) -> str:
    """Return three decimals; a dash for nothing."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _p_text(value: float | None) -> str:
    return "p < 0.001" if value is not None and value < 0.001 else f"p {_number_text(value)}"
