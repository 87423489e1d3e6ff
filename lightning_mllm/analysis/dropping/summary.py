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
_COMPARED = ("random", "stride")  # what a choice has to beat
_INDEX = ("layer", "percent", "choice", "seed")


def summarise_dropping(
    name: str,
    table: Table,
    settings: Mapping[str, Any],
    *,
    kind_depth: int | None,
    bootstrap: Bootstrap,
) -> AnalysisResult:
    """Return the numbers per kind, place (layer and share) and choice.

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
    found = zip(table["layer"][measured], table["percent"][measured], strict=True)
    places = sorted({(int(layer), float(percent)) for layer, percent in found})
    choices = tuple(dict.fromkeys(table["choice"][measured].tolist()))
    coords: dict[str, tuple[Any, ...]] = {
        "kind": tuple(kept.groups),
        "place": tuple(f"layer {layer}, {percent:g} %" for layer, percent in places),
        "choice": choices,
        "measure": MEASURES,
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    if len(kept.ids):
        index = tuple(
            np.array([axes[axis].index(place[number]) for place in places])
            for number, axis in enumerate(_INDEX[:2])
        )
        order = [axes["choice"].index(choice) for choice in choices]
        cells = {}
        for column in _COLUMNS:
            every = pivot_question_table(table, column, axes, kept.ids, measured)
            own = every[:, *index][:, :, order]  # (questions, places, choices, seeds)
            cells[column] = mean_unless_missing(own, ~np.isnan(own), -1)
        clean = _answer_without_drops(table, cells["right"])
        kinds = track(kept.groups.items(), f"{name}: intervals of kinds")
        for group, (kind, rows) in enumerate(kinds):
            some = {column: each[rows].reshape(len(rows), -1) for column, each in cells.items()}
            if len(rows) < len(kept.ids):
                some["seconds"] *= nan  # a pass is of a batch of all kinds
            draws = bootstrap.draw(kept.pictures[rows], kind)
            numbers = _compute_measures(some, clean[rows, None], draws)
            values[group] = numbers.reshape(values.shape[1:])
    more = {
        "kind_depth": kind_depth,
        "bootstrap": asdict(bootstrap),
        "found": {
            "questions": count_questions(table, kind_depth),
            "pictures": kept.count_pictures(),
            "accuracy_percent_of_all": _mean_percent(table, measured),
        },
    }
    settings, n = {**settings, **more}, len(kept.ids)
    headline = make_dropping_headline(values[0], coords, more["found"]["accuracy_percent_of_all"])
    return AnalysisResult(
        name, values, tuple(coords), coords, n, settings, (_make_plot(choices),), headline
    )


def _mean_percent(table: Table, measured: Any) -> float:
    """Return how many questions are answered right with nothing dropped, in percent."""
    _, first = np.unique(table["sample_id"][measured], return_index=True)
    return 100 * float(table["correct"][measured][first].mean()) if len(first) else nan


def _answer_without_drops(table: Table, right: Floats) -> Floats:
    """Return whether each question is answered right with nothing dropped.

    It is 1 or 0, (questions,), and NaN for questions that are not scored.
    """
    measured = table["measured"]
    _, first = np.unique(table["sample_id"][measured], return_index=True)
    answered = np.isfinite(right).any(axis=(1, 2))
    return np.where(answered, table["correct"][measured][first].astype(np.float64), nan)


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


def _make_plot(choices: tuple[str, ...]) -> ResultPlot:
    return ResultPlot(
        "accuracy",
        "lines",
        x="place",
        y="choice",
        shown={choice: choice for choice in choices},
        fixed={"measure": MEASURES[0]},
        xlabel="Dropped in front of layer, share of visual tokens",
        label="Accuracy (%)",
        title="Dropping visual tokens",
        references=tuple(choice for choice in choices if choice in _COMPARED),
    )
