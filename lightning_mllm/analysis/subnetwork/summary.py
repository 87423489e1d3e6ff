"""From rows of questions and sub-networks to accuracies with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.statistics.interval import HIGH, LOW, STATISTICS, VALUE, missing_interval
from lightning_mllm.statistics.missing import Floats, Integers
from lightning_mllm.statistics.picture_bootstrap import (
    bootstrap_share,
    bootstrap_share_difference,
    bootstrap_share_ratio,
)
from lightning_mllm.statistics.question_table import (
    KeptQuestions,
    count_questions,
    pivot_question_table,
)
from lightning_mllm.types import Table

WHOLE = "whole"  # the name of the whole LLM among the sub-networks
ALPHA = "alpha"  # how the names of the alpha-SubNet and of what it is compared with begin
MEASURES = ("accuracy_percent", "change_points", "retained_percent")


def summarise_pruned_accuracy(
    name: str, table: Table, settings: Mapping[str, Any], kind_depth: int | None
) -> AnalysisResult:
    """Return the numbers per sub-network and kind.

    Args:
        name: Name of the analysis.
        table: Rows, see `PrunedAccuracyRow`.
        settings: What decided the rows.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; None for
            all.
    """
    measured = table["measured"]
    kept = KeptQuestions.of(table, kind_depth)
    names = sorted(set(table["subnetwork"][measured].tolist()), key=_sort_key)
    coords: dict[str, tuple[Any, ...]] = {
        "measure": MEASURES,
        "subnetwork": tuple(names),
        "kind": tuple(kept.groups),
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    right = pivot_question_table(table, "right", {"subnetwork": names}, kept.ids, measured)
    for kind, rows in enumerate(kept.groups.values() if len(kept.ids) else ()):
        _, pictures = np.unique(kept.pictures[rows], return_inverse=True)
        values[:, :, kind] = _compare_with_whole(right[rows], names.index(WHOLE), pictures)
    sparsities: dict[str, float] = {}
    for each in names:
        sparsities[each] = float(table["sparsity"][table["subnetwork"] == each][0])
    more = {
        "kind_depth": kind_depth,
        "found": {
            "questions": count_questions(table, kind_depth),
            "pictures": kept.count_pictures(),
            "sparsity": sparsities,
        },
    }
    settings = {**settings, **more}
    axes, plots = tuple(coords), _make_plots(names)
    headline = _make_headline(values, names, sparsities) if len(kept.ids) else None
    return AnalysisResult(name, values, axes, coords, len(kept.ids), settings, plots, headline)


def _compare_with_whole(right: Floats, whole: int, pictures: Integers) -> Floats:
    """Return the statistics of answers, (measures, sub-networks, statistics).

    Args:
        right: (questions, sub-networks), 1 where an answer is right, else 0.
        whole: Which of the sub-networks is the whole LLM.
        pictures: (questions,), the number of the picture that each is about.
    """
    dense = np.repeat(right[:, whole : whole + 1], right.shape[1], axis=1)
    change = bootstrap_share_difference(right, dense, pictures, 100)
    retained = bootstrap_share_ratio(right, dense, pictures, 100)
    for own in (change, retained):  # against itself
        own[whole, LOW] = own[whole, HIGH] = own[whole, VALUE]
    return np.stack([bootstrap_share(right, pictures, 100), change, retained])


def _make_headline(
    values: Floats, names: Sequence[str], sparsities: Mapping[str, float]
) -> Headline:
    """Return the accuracy of each sub-network on all kinds, which come first."""
    rows = []
    for number, name in enumerate(names):
        accuracy, change, _ = values[:, number, 0]
        rows.append(
            (
                name,
                f"{100 * sparsities[name]:.0f}",
                format_estimate(accuracy, 1),
                format_estimate(change, 1),
                format_count(accuracy),
            )
        )
    columns = ("sub-network", "pruned (%)", "accuracy (%)", "change", "N")
    caption = "Accuracy of each sub-network, and its change against the whole LLM in points."
    return Headline(caption, columns, tuple(rows))


def _sort_key(name: str) -> tuple[bool, bool, str]:
    """Put the whole LLM first, then the alpha-SubNet and its comparisons, then the tasks."""
    return name != WHOLE, not name.startswith(ALPHA), name


def _make_plots(names: Sequence[str]) -> tuple[ResultPlot, ...]:
    if not names:
        return ()
    return (
        ResultPlot(
            "transfer",
            "heat map",
            x="kind",
            y="subnetwork",
            shown={name: name for name in names},
            fixed={},
            xlabel="Kind of question",
            label="Percent or points",
            title="What parts of the LLM answer",
        ),
    )
