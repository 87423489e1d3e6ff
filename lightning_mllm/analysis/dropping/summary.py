"""From rows of questions and drops to accuracy, operations and time with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import nan
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.dropping.headline import make_dropping_headline
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.missing import Floats, mean_unless_missing
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
    "accuracy_change_points",  # against nothing dropped, the same questions
    "flops_percent",  # of those with nothing dropped
    "time_percent",  # of all kinds together; N and intervals of times are of passes
    "milliseconds",  # per sample of a pass; N and intervals are of passes
)
_COLUMNS = ("right", "flops", "flops_clean", "seconds", "seconds_clean")
_PERCENT = np.array([100, 100, 100, 1])  # turns statistics of a ratio into percent, but for N
_INDEX = ("layer", "percent", "choice", "seed")


def summarise_dropping(
    name: str,
    table: Table,
    settings: Mapping[str, Any],
    *,
    kind_depth: int | None,
    bootstrap: Bootstrap,
) -> AnalysisResult:
    """Return the numbers per layer, choice, share of dropped tokens, and kind.

    A share of 0 is nothing dropped, on the same questions.

    Args:
        name: Name of the analysis.
        table: Rows, see `DroppingRow`.
        settings: What decided the rows.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; None for
            all.
        bootstrap: How intervals are drawn.
    """
    measured = table["measured"]
    kept = KeptQuestions.of(table, kind_depth)
    axes = {axis: tuple(np.unique(table[axis][measured]).tolist()) for axis in _INDEX}
    axes["choice"] = tuple(dict.fromkeys(table["choice"][measured].tolist()))
    coords: dict[str, tuple[Any, ...]] = {
        "layer": axes["layer"],
        "choice": axes["choice"],
        "percent": tuple(sorted({0.0, *axes["percent"]})),
        "kind": tuple(kept.groups),
        "measure": MEASURES,
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    if len(kept.ids):
        cells, clean = _pivot(table, axes, kept)
        kinds = track(kept.groups.items(), f"{name}: intervals of kinds")
        for group, (kind, rows) in enumerate(kinds):
            own = {column: each[rows].reshape(len(rows), -1) for column, each in cells.items()}
            if len(rows) < len(kept.ids):
                own["seconds"] *= nan  # a pass is of a batch of all kinds
            draws = bootstrap.draw(kept.pictures[rows], kind)
            numbers = _compute_measures(own, clean[rows, None], draws)
            values[:, :, :, group] = numbers.reshape(*values.shape[:3], *numbers.shape[1:])
    more = {
        "kind_depth": kind_depth,
        "bootstrap": asdict(bootstrap),
        "found": {
            "questions": count_questions(table, kind_depth),
            "pictures": kept.count_pictures(),
        },
    }
    settings, n = {**settings, **more}, len(kept.ids)
    headline = make_dropping_headline(values[:, :, :, 0], coords)
    plot = _make_plot(axes["choice"], coords["kind"][0])
    return AnalysisResult(name, values, tuple(coords), coords, n, settings, (plot,), headline)


def _pivot(
    table: Table, axes: Mapping[str, tuple[Any, ...]], kept: KeptQuestions
) -> tuple[dict[str, Floats], Floats]:
    """Return the columns' numbers, means over seeds, and whether the clean model answers right.

    The numbers are (questions, layers, choices, percents), with those of nothing dropped first; the
    answers are 1 or 0, (questions,), and NaN for questions that are not scored.
    """
    measured = table["measured"]
    cells = {}
    for column in _COLUMNS:
        every = pivot_question_table(table, column, axes, kept.ids, measured)
        cells[column] = mean_unless_missing(every, ~np.isnan(every), -1).swapaxes(2, 3)
    _, first = np.unique(table["sample_id"][measured], return_index=True)
    answered = np.isfinite(cells["right"]).any(axis=(1, 2, 3))
    clean = np.where(answered, table["correct"][measured][first].astype(np.float64), nan)
    if 0.0 not in axes["percent"]:
        asked = np.isfinite(cells["flops"]).any(axis=(0, 3))  # (layers, choices)
        none = {"right": np.broadcast_to(clean[:, None, None], cells["right"].shape[:3])}
        for column in ("flops", "seconds"):
            each = cells[f"{column}_clean"]
            none[column] = none[f"{column}_clean"] = mean_unless_missing(each, ~np.isnan(each), -1)
        for column, each in none.items():
            first_cells = np.where(asked, each, nan)[..., None]
            cells[column] = np.concatenate([first_cells, cells[column]], axis=-1)
    return cells, clean


def _compute_measures(cells: Mapping[str, Floats], clean: Floats, draws: BootstrapDraws) -> Floats:
    """Return the statistics of cases, (cases, measures, statistics).

    Where a choice has several seeds, answers are shares of them, which the bootstrap over pictures
    takes as they are; a share of 0 and 1 has the score interval.

    Args:
        cells: Column -> (questions, cases).
        clean: (questions, 1), whether each is answered right with nothing dropped.
        draws: Resamples of the questions.
    """
    right, flops, seconds = cells["right"], cells["flops"], cells["seconds"]
    whole = (np.isnan(right) | np.isin(right, (0, 1))).all(axis=0)  # (cases,), one seed
    accuracy = bootstrap_estimate(bootstrap_mean(100 * right), right, draws)
    change = bootstrap_estimate(bootstrap_mean(100 * (right - clean)), right - clean, draws)
    if whole.any():
        own = right[:, whole]
        accuracy[whole] = bootstrap_share(own, draws.pictures, 100)
        change[whole] = bootstrap_share_difference(own, clean, draws.pictures, 100)
    measures = [accuracy, change]
    for column, values in (("flops", flops), ("seconds", seconds)):
        ratio = bootstrap_ratio_of_means(values, cells[f"{column}_clean"])
        measures.append(bootstrap_estimate(ratio, values, draws) * _PERCENT)
    measures.append(bootstrap_estimate(bootstrap_mean(1000 * seconds), seconds, draws))
    return np.stack(measures, axis=1)


def _make_plot(choices: tuple[str, ...], kind: str) -> ResultPlot:
    return ResultPlot(
        "accuracy",
        "lines",
        x="percent",
        y="choice",
        shown={choice: choice for choice in choices},
        fixed={"measure": MEASURES[0], "kind": kind},
        xlabel="Visual tokens that are dropped in front of the layer (%)",
        label="Accuracy (%)",
        title="Dropping visual tokens",
    )
