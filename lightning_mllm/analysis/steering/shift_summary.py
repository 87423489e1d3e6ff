"""From rows of shifts to the part of fine-tuning's gain that they give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.steering.headline import make_shift_headline
from lightning_mllm.analysis.steering.summary import SteeringSummary, make_steering_plots
from lightning_mllm.statistics.interval import HIGH, LOW, STATISTICS, VALUE
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
from lightning_mllm.statistics.shares import share_difference_interval
from lightning_mllm.types import Table

SHIFT_MEASURES = (
    "before_percent",  # right answers of the model before fine-tuning
    "after_percent",  # of the fine-tuned model
    "shifted_percent",  # of the model before with the shift
    "other_percent",  # with the mean shift of the other classes
    "random_percent",  # with random vectors of equal norm
    "change_points",  # shifted against before
    "change_minus_random_points",
    "given_back_percent",  # of the gain, after against before
    "other_given_back_percent",
    "random_given_back_percent",
)
_COLUMNS = ("before", "after", "shifted", "other", "random")
_SHOWN = {
    "before_percent": "before fine-tuning",
    "after_percent": "fine-tuned",
    "shifted_percent": "before + shift",
    "other_percent": "before + shift of other classes",
    "random_percent": "before + random vector",
}


def summarise_shifts(
    name: str,
    table: Table,
    settings: Mapping[str, Any],
    *,
    kind_depth: int | None,
    bootstrap: Bootstrap,
) -> AnalysisResult:
    """Return the numbers per kind, steer, layers and scale.

    Args:
        name: Name of the analysis.
        table: Rows, see `ShiftRow`.
        settings: What decided the rows.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; None for
            all.
        bootstrap: How intervals are drawn.
    """
    summary = SteeringSummary.of(table, _COLUMNS, kind_depth)
    values = summary.compute(bootstrap, SHIFT_MEASURES, _compute_shift_measures)
    more = {
        "kind_depth": kind_depth,
        "bootstrap": asdict(bootstrap),
        "found": summary.found,
    }
    coords = {**summary.coords, "measure": SHIFT_MEASURES, "statistic": STATISTICS}
    return AnalysisResult(
        name,
        values,
        tuple(coords),
        coords,
        len(summary.kept.ids),
        {**settings, **more},
        tuple(make_steering_plots(coords, _SHOWN, "Right answers (%)", "Shift vectors")),
        make_shift_headline(values[0] if len(values) else values, coords),
    )


def _compute_shift_measures(cells: Mapping[str, Floats], draws: BootstrapDraws) -> Floats:
    """Return the statistics of (questions, numbers) cells, (numbers, measures, 4)."""
    before, after, shifted = cells["before"], cells["after"], cells["shifted"]
    pictures = draws.pictures

    def mean(values: Floats) -> Floats:
        return bootstrap_estimate(bootstrap_mean(values), values, draws)

    gain = mean(after - before)
    bounded = (gain[:, LOW] > 0) | (gain[:, HIGH] < 0)  # else no ratio to it is
    size = np.where(bounded, gain[:, VALUE], np.nan)

    def given_back(with_vector: Floats) -> Floats:
        ratio = bootstrap_ratio_of_means(100 * (with_vector - before), after - before)
        found = bootstrap_estimate(ratio, with_vector, draws)
        # of equal ratios the bootstrap has no width, the interval of a change of shares has
        change = np.sort(100 * share_difference_interval(with_vector, before, pictures) / size, 0)
        found[:, LOW] = np.minimum(found[:, LOW], change[0])
        found[:, HIGH] = np.maximum(found[:, HIGH], change[1])
        found[:, [VALUE, LOW, HIGH]] += 0 * size[:, None]  # NaN where the gain may be 0
        return found

    measures = [
        bootstrap_share(before, pictures, 100),
        bootstrap_share(after, pictures, 100),
        bootstrap_share(shifted, pictures, 100),
        bootstrap_share(cells["other"], pictures, 100),
        bootstrap_share(cells["random"], pictures, 100),  # a question's share counts as an answer
        bootstrap_share_difference(shifted, before, pictures, 100),
        mean(100 * (shifted - cells["random"])),
        given_back(shifted),
        given_back(cells["other"]),
        given_back(cells["random"]),
    ]
    return np.stack(measures, axis=1)
