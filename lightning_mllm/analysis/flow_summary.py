"""From the rows of the information flow to numbers per kind of question, block and window, and to figures of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.base import STATISTICS, AnalysisResult, Plot
from lightning_mllm.analysis.blocks import Block
from lightning_mllm.analysis.flow_rows import FlowRow
from lightning_mllm.analysis.rows import Table, read_rows
from lightning_mllm.analysis.summaries import (
    Bootstrap,
    Floats,
    Statistic,
    common_questions,
    count_questions,
    difference,
    estimate,
    mean,
    median,
    members,
    no_numbers,
    pivot,
    ratio_of_means,
)
from lightning_mllm.types import Segment

log = logging.getLogger(__name__)

MEASURES = (
    "mean_change_percent",  # the paper's: the mean of the questions' ratios
    "change_of_mean_percent",  # the ratio of the means
    "median_change_percent",
    "logprob_change",
    "flip_rate",
    "margin_change",
)
_COLUMNS = (
    "relative_change_percent",
    "p_before",
    "p_after",
    "logprob_change",
    "flipped",
    "margin_before",
    "margin_after",
)
_PATCHES = (Segment.IMAGE_OBJECT, Segment.IMAGE_OTHER, Segment.IMAGE_RANDOM)

Cells = Mapping[str, Floats]  # column -> (questions, numbers)


def summarise_flow(
    table: Table,
    *,
    name: str = "information_flow",
    contrasts: Sequence[tuple[str, str]] = (),
    kind_depth: int | None = None,
    bootstrap: Bootstrap = Bootstrap(),  # noqa: B008 - frozen
    settings: Mapping[str, Any] | None = None,
) -> AnalysisResult:
    """Return the numbers of rows, with their intervals.

    Args:
        table: Rows of `FlowRow`.
        name: Of the result.
        contrasts: Pairs of blocks; their differences follow behind the blocks.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
        bootstrap: How intervals are drawn.
        settings: What decided the rows.

    Returns:
        On the axes kind, block, centre, measure and statistic.
    """
    measured = table["measured"]
    questions, first = np.unique(table["sample_id"][measured], return_index=True)
    blocks = tuple(dict.fromkeys(table["block"][measured].tolist()))
    centres = tuple(np.unique(table["centre"][measured]).tolist())
    axes: dict[str, Sequence[Any]] = {"block": blocks, "centre": centres}
    counted = measured & ~table["empty"]
    cells = {column: pivot(table, column, axes, questions, counted) for column in _COLUMNS}
    groups = members(table["kind"][measured][first], kind_depth)
    if not len(questions):
        log.warning("%s: none of %d questions is looked into.", name, len(np.unique(table["sample_id"])))

    compared = tuple(f"{ours} minus {theirs}" for ours, theirs in contrasts)
    pairs = [(blocks.index(ours), blocks.index(theirs)) for ours, theirs in contrasts if blocks]
    coords = {
        "kind": tuple(groups),
        "block": (*blocks, *(compared if blocks else ())),
        "centre": centres,
        "measure": MEASURES,
        "statistic": STATISTICS,
    }
    values = no_numbers(coords)
    for index, (kind, rows) in enumerate(groups.items() if len(questions) else ()):
        own = {column: each[rows] for column, each in cells.items()}
        values[index] = _numbers(own, pairs, bootstrap.weights(len(rows), kind))
    found = {**(settings or {}), "kind_depth": kind_depth, "found": _counts(table, kind_depth)}
    found["bootstrap"] = {"resamples": bootstrap.resamples, "seed": bootstrap.seed}
    width = max((stop - start for _, start, stop in found["found"]["windows"]), default=0)
    plots = _plots(blocks, compared, f"blocking attention in up to {width} layers")
    return AnalysisResult(name, values, tuple(coords), coords, len(questions), found, plots)


def compare_flows(rows: Mapping[str, Path], *, common: bool = True, **options: Any) -> dict[str, AnalysisResult]:
    """Summarise the `rows.csv` of several runs, e.g. of several models.

    Args:
        rows: Name -> file.
        common: Whether only the questions count that each of them looked into, so that the curves are of the same.
        options: Of `summarise_flow`.

    Raises:
        DataError: A file has other rows, or there is no common question.
    """
    tables: Mapping[str, Table] = {name: read_rows(path, FlowRow) for name, path in rows.items()}
    tables = common_questions(tables) if common else tables
    return {name: summarise_flow(table, name=name, **options) for name, table in tables.items()}


def _numbers(cells: Mapping[str, Floats], pairs: Sequence[tuple[int, int]], weights: Floats) -> Floats:
    """Return (blocks and contrasts, centres, measures, statistics) of (questions, blocks, centres) cells."""
    questions, blocks, centres = cells["p_before"].shape
    flat = {column: each.reshape(questions, -1) for column, each in cells.items()}
    own = [estimate(statistic, values, weights) for statistic, values in _statistics(flat)]
    parts = [np.stack(own, axis=1).reshape(blocks, centres, len(MEASURES), len(STATISTICS))]
    for pair in pairs:
        ours, theirs = ({column: each[:, block] for column, each in cells.items()} for block in pair)
        for column in _COLUMNS:
            neither = np.isnan(ours[column]) | np.isnan(theirs[column])
            ours[column], theirs[column] = (np.where(neither, np.nan, each[column]) for each in (ours, theirs))
        both = zip(_statistics(ours), _statistics(theirs), strict=True)
        parts.append(np.stack([difference(a, b, values, weights) for (a, values), (b, _) in both], axis=1)[None])
    return np.concatenate(parts)


def _statistics(cells: Cells) -> list[tuple[Statistic, Floats]]:
    """Return the statistic of each measure, and the values that it is of."""
    change, before, after = cells["relative_change_percent"], cells["p_before"], cells["p_after"]
    margin = cells["margin_after"] - cells["margin_before"]
    ratio = ratio_of_means(after, before)
    return [
        (mean(change), change),
        (lambda weights: 100 * (ratio(weights) - 1), change),
        (median(change), change),
        (mean(cells["logprob_change"]), cells["logprob_change"]),
        (mean(cells["flipped"]), cells["flipped"]),
        (mean(margin), margin),
    ]


def _counts(table: Table, kind_depth: int | None) -> dict[str, Any]:
    """Return how many questions of each kind were asked and kept, for how many a set is empty, and the windows."""
    measured = table["measured"]
    centre = table["centre"] == (table["centre"][measured].min() if measured.any() else -1)
    empty = Counter(table["block"][measured & table["empty"] & centre].tolist())
    windows: NDArray[np.int64] = np.stack([table[column][measured] for column in ("centre", "start", "stop")], axis=1)
    return {
        "questions": count_questions(table, kind_depth),
        "without_a_set": dict(sorted(empty.items())),
        "windows": np.unique(windows, axis=0).tolist(),
        "engines": np.unique(table["engine"][measured]).tolist(),
    }


def _plots(blocks: Sequence[str], compared: Sequence[str], what: str) -> tuple[Plot, ...]:
    """Return the paper's three families, what is in none of them, the contrasts, and a heat map of all blocks."""
    families: dict[str, list[str]] = {}
    for block in blocks:
        families.setdefault(_family(Block.parse(block)), []).append(block)
    if blocks and compared:
        families["contrasts"] = list(compared)
    lines = [_plot(family, "lines", members, what) for family, members in families.items()]
    return (*lines, _plot("heat_map", "heat map", blocks, what)) if blocks else ()


def _plot(name: str, style: Any, blocks: Sequence[str], what: str) -> Plot:
    return Plot(
        name=name,
        style=style,
        x="centre",
        y="block",
        shown={block: block.replace("->", " \u219b ") for block in blocks},  # a crossed arrow
        fixed={"measure": MEASURES[0]},
        xlabel="Layer on which the window is centred",
        label="Change in probability (%)",
        title=f"Effect of {what} on the first token's probability",
    )


def _family(block: Block) -> str:
    if block.target is Segment.LAST:
        return "to_last"
    if block.target is Segment.QUESTION and block.source is Segment.IMAGE:
        return "image_to_question"
    if block.target is Segment.QUESTION and block.source in _PATCHES:
        return "patches_to_question"
    return "other"
