"""From rows of attention shares to numbers per kind, target, set, head and layer, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, VALUE, missing_interval
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    bootstrap_estimate,
    bootstrap_mean,
)
from lightning_mllm.statistics.question_table import (
    KeptQuestions,
    count_questions,
    pivot_question_table,
)
from lightning_mllm.types import Table

MEAN = "mean"  # of the heads
OVER_RANDOM, OVER_DISTRACTOR = "object minus random", "object minus distractor"
_CONTRASTS = {OVER_RANDOM: "random", OVER_DISTRACTOR: "distractor"}
_SHOWN = {
    "image": "image",
    "object": "object",
    "random": "as many random patches",
    "distractor": "other objects",
    "first": "first token",
    "sinks": "sinks",
}
_COLUMNS = (*_SHOWN, "text", "other")


def summarise_attention(
    table: Table,
    *,
    name: str,
    kind_depth: int | None,
    bootstrap: Bootstrap,
    settings: Mapping[str, Any],
) -> AnalysisResult:
    """Return the numbers of rows, in percent of the attention, with their intervals.

    Args:
        table: Rows of `AttentionRow`.
        name: Name of the result.
        kind_depth: How many parts of a kind's name (a/b/c) tell kinds apart; by default all.
        bootstrap: How intervals are drawn.
        settings: What decided the rows.

    Returns:
        On the axes kind, target, set, head, layer and statistic. Differences from a control leave
        out questions whose random patches could not avoid the object.
    """
    kept, measured = KeptQuestions.of(table, kind_depth), table["measured"]
    axes: dict[str, Sequence[Any]] = {
        "target": tuple(dict.fromkeys(table["target"][measured].tolist())),
        "head": tuple(np.unique(table["head"][measured]).tolist()),
        "layer": tuple(np.unique(table["layer"][measured]).tolist()),
    }
    coords: dict[str, tuple[Any, ...]] = {
        "kind": tuple(kept.groups),
        "target": tuple(axes["target"]),
        "set": (*_COLUMNS, *_CONTRASTS),
        "head": tuple(MEAN if head < 0 else str(head) for head in axes["head"]),
        "layer": tuple(axes["layer"]),
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)

    def pivot(column: str) -> Floats:  # (questions, targets, heads, layers)
        return pivot_question_table(table, column, axes, kept.ids, measured)

    cells = {column: 100 * pivot(column) for column in _COLUMNS} if len(kept.ids) else {}
    if cells:
        fair = np.where(pivot("control_overlap") > 0, np.nan, cells["random"])
        against = {**cells, "random": fair}
        cells |= {each: cells["object"] - against[its] for each, its in _CONTRASTS.items()}
    kinds = kept.groups.items() if cells else ()
    for index, (kind, rows) in enumerate(track(kinds, f"{name}: intervals of kinds")):
        draws = bootstrap.draw(kept.pictures[rows], kind)
        for number, each in enumerate(cells.values()):
            own = each[rows].reshape(len(rows), -1)
            estimate = bootstrap_estimate(bootstrap_mean(own), own, draws)
            values[index, :, number] = estimate.reshape(values[index, :, number].shape)
    found = _count(table, kept, kind_depth)
    more = {"kind_depth": kind_depth, "bootstrap": asdict(bootstrap), "found": found}
    plots = _make_plots(values, coords) if cells else ()
    headline = _make_headline(values[0], coords) if cells else None
    return AnalysisResult(
        name, values, tuple(coords), coords, len(kept.ids), {**settings, **more}, plots, headline
    )


def _count(table: Table, kept: KeptQuestions, kind_depth: int | None) -> dict[str, Any]:
    """Return numbers of questions, of pictures, and of questions with sinks."""
    measured = table["measured"]
    _, first = np.unique(table["sample_id"][measured], return_index=True)

    def questions_with(column: str) -> int:
        return len(np.unique(table["sample_id"][measured & (table[column] > 0)]))

    found = {
        "questions": count_questions(table, kind_depth),
        "pictures": kept.count_pictures(),
        "with_control_overlap": questions_with("control_overlap"),
        "with_sinks": questions_with("sink_tokens"),
    }
    for column in ("object_patches", "image_patches"):
        sizes = table[column][measured][first]
        found[column] = float(sizes[sizes > 0].mean()) if sizes.any() else 0.0
    return found


def _make_plots(values: Floats, coords: Mapping[str, tuple[Any, ...]]) -> tuple[ResultPlot, ...]:
    """Return, for each target, curves of the heads' mean and a heat map of heads by layers."""
    plots = []
    heads = [head for head in coords["head"] if head != MEAN]
    for target in sorted(coords["target"], key=lambda each: each != "last"):
        name = str(target).replace(" ", "_")
        plots.append(
            ResultPlot(
                f"shares_{name}",
                "lines",
                x="layer",
                y="set",
                shown=_SHOWN,
                fixed={"target": target, "head": MEAN},
                xlabel="Layer",
                label="Share of attention (%)",
                title=f"Where attention from {str(target).upper()} goes, mean of heads",
            )
        )
        place = coords["target"].index(target)
        over_random = values[:, place, coords["set"].index(OVER_RANDOM), ..., VALUE]
        looked = OVER_RANDOM if np.isfinite(over_random).any() else "image"
        plots.append(
            ResultPlot(
                f"heads_{name}",
                "heat map",
                x="layer",
                y="head",
                shown={head: f"head {head}" for head in heads},
                fixed={"target": target, "set": looked},
                xlabel="Layer",
                label=f"Share of attention (%): {looked}",
                title=f"Attention from {str(target).upper()} to the {looked}, head by head",
            )
        )
    return tuple(plot for plot in plots if plot.shown)


def _make_headline(values: Floats, coords: Mapping[str, tuple[Any, ...]]) -> Headline:
    """Return, for each target, where the mean head looks most at the object and the image.

    Args:
        values: (targets, sets, heads, layers, 4).
        coords: Coordinates of these axes.
    """
    rows = []
    for place, target in enumerate(coords["target"]):
        for looked in (OVER_RANDOM, "object", "image", "sinks", "first"):
            own = values[place, coords["set"].index(looked), 0]  # (layers, 4)
            if not np.nansum(own[:, VALUE]):  # there is no object, or no sink
                continue
            most = int(np.nanargmax(own[:, VALUE]))
            cells = format_estimate(own[most], 1), format_count(own[most])
            rows.append((f"{target} to {looked}", str(coords["layer"][most]), *cells))
    caption = (
        "Largest share of attention (%) in a layer, mean of heads. The interval is of that layer "
        "alone, not of the choice among layers."
    )
    return Headline(caption, ("from, to", "layer", "share (%)", "N"), tuple(rows))
