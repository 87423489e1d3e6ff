"""From rows of questions and skips to accuracy, operations and time with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import nan
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.skipping.headline import make_skipping_headline
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    BootstrapDraws,
    bootstrap_estimate,
    bootstrap_mean,
    bootstrap_ratio_of_means,
    bootstrap_share,
    bootstrap_share_difference,
)
from lightning_mllm.statistics.question_table import (
    KeptQuestions,
    count_questions,
    pivot_question_table,
)
from lightning_mllm.types import Table

MEASURES = (
    "accuracy_percent",
    "accuracy_change_points",  # against nothing skipped, the same questions
    "flops_percent",  # of those with nothing skipped
    "time_percent",  # of all kinds together; N and intervals of times are of passes
    "milliseconds",  # per sample of a pass; N and intervals are of passes
)
_COLUMNS = ("right", "flops", "flops_clean", "seconds", "seconds_clean")
_PERCENT = np.array([100, 100, 100, 1])  # turns statistics of a ratio into percent, but for N


def summarise_skipping(
    name: str,
    table: Table,
    settings: Mapping[str, Any],
    *,
    kind_depth: int | None,
    bootstrap: Bootstrap,
) -> AnalysisResult:
    """Return the numbers per kind, computation, first layer and share.

    Args:
        name: Name of the analysis.
        table: Rows, see `SkippingRow`.
        settings: What decided the rows.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; None for
            all.
        bootstrap: How intervals are drawn.
    """
    measured = table["measured"]
    kept = KeptQuestions.of(table, kind_depth)
    axes: dict[str, Sequence[Any]] = {
        "computation": tuple(dict.fromkeys(table["computation"][measured].tolist())),
        "start": tuple(np.unique(table["start"][measured]).tolist()),
        "percent": tuple(np.unique(table["percent"][measured]).tolist()),
    }
    coords: dict[str, tuple[Any, ...]] = {
        "kind": tuple(kept.groups),
        "computation": tuple(axes["computation"]),
        "start": tuple(map(str, axes["start"])),
        "percent": tuple(axes["percent"]),
        "measure": MEASURES,
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    if len(kept.ids):
        cells = {
            column: pivot_question_table(table, column, axes, kept.ids, measured)
            for column in _COLUMNS
        }
        clean = _answer_without_skips(table, cells["right"])
        kinds = track(kept.groups.items(), f"{name}: intervals of kinds")
        for group, (kind, rows) in enumerate(kinds):
            own = {column: each[rows].reshape(len(rows), -1) for column, each in cells.items()}
            if len(rows) < len(kept.ids):
                own["seconds"] *= nan  # a pass is of a batch of all kinds
            draws = bootstrap.draw(kept.pictures[rows], kind)
            numbers = _compute_measures(own, clean[rows, None], draws)
            values[group] = numbers.reshape(values.shape[1:])
    more = {
        "kind_depth": kind_depth,
        "bootstrap": asdict(bootstrap),
        "found": {
            "questions": count_questions(table, kind_depth),
            "pictures": kept.count_pictures(),
        },
    }
    settings, n = {**settings, **more}, len(kept.ids)
    plots = tuple(_make_plot(each, coords["start"]) for each in coords["computation"])
    headline = make_skipping_headline(values[0], coords)
    return AnalysisResult(name, values, tuple(coords), coords, n, settings, plots, headline)


def _answer_without_skips(table: Table, right: Floats) -> Floats:
    """Return whether each question is answered right with nothing skipped.

    It is 1 or 0, (questions,), and NaN for questions that are not scored.
    """
    measured = table["measured"]
    _, first = np.unique(table["sample_id"][measured], return_index=True)
    answered = np.isfinite(right).any(axis=(1, 2, 3))
    return np.where(answered, table["correct"][measured][first].astype(np.float64), nan)


def _compute_measures(cells: Mapping[str, Floats], clean: Floats, draws: BootstrapDraws) -> Floats:
    """Return the statistics of cases, (cases, measures, statistics).

    Args:
        cells: Column -> (questions, cases).
        clean: (questions, 1), whether each is answered right with nothing skipped.
        draws: Resamples of the questions.
    """
    right, pictures = cells["right"], draws.pictures
    flops, seconds = cells["flops"], cells["seconds"]
    measures = [
        bootstrap_share(right, pictures, 100),
        bootstrap_share_difference(right, clean, pictures, 100),
        bootstrap_estimate(bootstrap_ratio_of_means(flops, cells["flops_clean"]), flops, draws)
        * _PERCENT,
        bootstrap_estimate(
            bootstrap_ratio_of_means(seconds, cells["seconds_clean"]), seconds, draws
        )
        * _PERCENT,
        bootstrap_estimate(bootstrap_mean(1000 * seconds), seconds, draws),
    ]
    return np.stack(measures, axis=1)


def _make_plot(computation: str, starts: Sequence[str]) -> ResultPlot:
    return ResultPlot(
        f"accuracy_{computation}",
        "lines",
        x="percent",
        y="start",
        shown={start: f"from layer {start}" for start in starts},
        fixed={"computation": computation, "measure": MEASURES[0]},
        xlabel="Tokens that skip it (%)",
        label="Accuracy (%)",
        title=f"Skipping: {computation.replace('_', ' ')}",
    )
