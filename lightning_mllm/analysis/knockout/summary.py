"""From rows of the information flow to numbers per kind, block and window, and to figures."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.headline import make_flow_headline
from lightning_mllm.analysis.knockout.mask import why_mask_is_empty
from lightning_mllm.analysis.knockout.measures import MEASURES, Cells, flow_measures
from lightning_mllm.analysis.knockout.rows import FlowRow
from lightning_mllm.analysis.knockout.sweep import Sweep, sweep_ceiling
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.picture_bootstrap import Bootstrap
from lightning_mllm.statistics.question_table import (
    ALL,
    KeptQuestions,
    common_questions,
    count_questions,
)
from lightning_mllm.store.rows import read_rows
from lightning_mllm.types import Segment, Table

logger = logging.getLogger(__name__)

CEILING = Block.parse("image->text")  # in all layers
_CEILING = "ceiling"  # its name among the blocks
_PATCHES = {
    Segment.IMAGE_OBJECT,
    Segment.IMAGE_OTHER,
    Segment.IMAGE_RANDOM,
    Segment.IMAGE_DISTRACTOR,
}
_X_LABELS = {
    "centre": "Layer on which the window is centred",
    "window": "Layer on which the window is centred (its layers)",
}
_CROSSED_ARROW = "\u219b"
_SHOWN = {_CEILING: f"image {_CROSSED_ARROW} text, all layers"}


def summarise_flow(
    table: Table,
    *,
    name: str = "information_flow",
    contrasts: Sequence[tuple[str, str]] = (),
    kind_depth: int | None = None,
    least_per_answer: int = 20,
    bootstrap: Bootstrap = Bootstrap(),
    settings: Mapping[str, Any] | None = None,
    told: Collection[str] = (),
) -> AnalysisResult:
    """Return the numbers of rows, with their intervals.

    Args:
        table: Rows of `FlowRow`.
        name: Name of the result.
        contrasts: Pairs of blocks; their differences come after the blocks. Questions whose random
            patches could not avoid the object count in no contrast with such patches.
        kind_depth: How many parts of a kind's name (a/b/c) tell kinds apart; by default all.
        least_per_answer: With how many questions a right answer has numbers of its own,
            `<kind>: <answer>`, where a kind has several answers.
        bootstrap: How intervals are drawn.
        settings: What decided the rows.
        told: Blocks of which it has been said already that they hide nothing.

    Returns:
        On the axes kind, block, centre, measure and statistic. Where windows share a centre, the
        third axis is `window` instead, with coordinates such as "4 (3-5)": layers 3 to 5, around
        layer 4. The block `ceiling`, which is in all layers, is the same for all windows.
    """
    kept, (table, above) = KeptQuestions.of(table, kind_depth), sweep_ceiling(table)
    sweep = Sweep.of(table)
    if not len(kept.ids):
        asked = len(np.unique(table["sample_id"]))
        logger.warning("%s: none of %d questions is measured.", name, asked)
    _warn_of_nothing(table, [block for block in sweep.blocks if block not in told], name)
    groups = {**kept.groups, **_by_answer(table, kept, least_per_answer)}
    pairs = _index_pairs(contrasts, sweep)
    coords = _coordinates(groups, sweep, pairs)
    values = missing_interval(coords)
    cells = sweep.cells(table, kept.ids)
    fair = sweep.without_overlap(cells, table, kept.ids)
    ceiling = sweep.ceiling(above, kept.ids)
    kinds = groups.items() if len(kept.ids) else ()
    for index, (kind, rows) in enumerate(track(kinds, f"{name}: intervals of kinds")):
        own, contrasted, most = (_take_questions(each, rows) for each in (cells, fair, ceiling))
        draws = bootstrap.draw(kept.pictures[rows], kind)
        values[index] = flow_measures(own, contrasted, most, [*pairs.values()], draws)
    more = {
        "kind_depth": kind_depth,
        "least_per_answer": least_per_answer,
        "bootstrap": asdict(bootstrap),
        "found": _count(table, kept, sweep, kind_depth),
    }
    decided = {**(settings or {}), **more}
    plots = _plots(sweep, [*pairs], [*kept.groups])
    headline = make_flow_headline(values[0, :, :, 0], coords["block"], sweep)
    return AnalysisResult(
        name, values, tuple(coords), coords, len(kept.ids), decided, plots, headline
    )


def compare_flows(
    rows: Mapping[str, Path], *, common: bool = True, **options: Any
) -> dict[str, AnalysisResult]:
    """Summarise the `rows.csv` of several runs, e.g. of several models.

    Args:
        rows: Name -> file.
        common: Whether only the questions count that are measured in each run, so that all curves
            are of the same questions.
        options: See `summarise_flow`.

    Raises:
        DataError: A file has other rows, or there is no common question.
    """
    tables: Mapping[str, Table] = {name: read_rows(path, FlowRow) for name, path in rows.items()}
    tables = common_questions(tables) if common else tables
    return {name: summarise_flow(table, name=name, **options) for name, table in tables.items()}


def _coordinates(
    groups: Iterable[str], sweep: Sweep, pairs: Iterable[str]
) -> dict[str, tuple[Any, ...]]:
    return {
        "kind": tuple(groups),
        "block": (*sweep.blocks, *([_CEILING] if sweep.blocks else []), *pairs),
        sweep.axis: sweep.labels,
        "measure": MEASURES,
        "statistic": STATISTICS,
    }


def _take_questions(cells: Cells, rows: NDArray[np.int64]) -> Cells:
    return {column: each[rows] for column, each in cells.items()}


def _index_pairs(contrasts: Sequence[tuple[str, str]], sweep: Sweep) -> dict[str, tuple[int, int]]:
    """Return name -> the numbers of two blocks; nothing where no block is measured."""
    pairs = {}
    for ours, theirs in contrasts if sweep.blocks else ():
        indices = sweep.blocks.index(ours), sweep.blocks.index(theirs)
        pairs[f"{ours} minus {theirs}"] = indices
    return pairs


def _by_answer(table: Table, kept: KeptQuestions, least: int) -> dict[str, NDArray[np.int64]]:
    """Return the questions of each right answer of a kind, if they are enough and not all of it."""
    measured = table["measured"]
    _, first = np.unique(table["sample_id"][measured], return_index=True)
    references = table["reference"][measured][first]
    found = {}
    for kind, rows in kept.groups.items():
        answers, counts = np.unique(references[rows], return_counts=True)
        for answer, count in zip(answers.tolist(), counts.tolist(), strict=True):
            if kind != ALL and least <= count < len(rows):
                found[f"{kind}: {json.loads(answer)}"] = rows[references[rows] == answer]
    return found


def _warn_of_nothing(table: Table, blocks: Iterable[str], name: str) -> None:
    """Warn of blocks that hide nothing in any question."""
    for block in blocks:
        own = table["measured"] & (table["block"] == block)
        if table["empty"][own].all():
            has_source = bool(table["source_size"][own].any())
            has_target = bool(table["target_size"][own].any())
            reason = why_mask_is_empty(Block.parse(block), has_source, has_target)
            count = len(np.unique(table["sample_id"][own]))
            logger.warning(
                "%s: %s blocks nothing in any of %d questions: %s.", name, block, count, reason
            )


def _count(
    table: Table, kept: KeptQuestions, sweep: Sweep, kind_depth: int | None
) -> dict[str, Any]:
    """Return numbers of questions, of pictures, of questions that lack something, and the sweep."""
    measured = table["measured"]
    once = measured & table["empty"] & (sweep.window == 0)
    empty = Counter(table["block"][once].tolist())

    def questions_with(column: str) -> int:
        return len(np.unique(table["sample_id"][measured & table[column].astype(bool)]))

    return {
        "questions": count_questions(table, kind_depth),
        "pictures": kept.count_pictures(),
        "without_a_set": dict(sorted(empty.items())),
        "with_control_overlap": questions_with("control_overlap"),
        "with_another_token": questions_with("token_differs"),
        "windows": sweep.windows.tolist(),
        "engines": np.unique(table["engine"][measured]).tolist(),
    }


def _plots(sweep: Sweep, compared: Sequence[str], kinds: Sequence[str]) -> tuple[ResultPlot, ...]:
    """Return a plot for each of the paper's three groups of blocks, and one for the other blocks.

    The contrasts follow, and a heat map of all blocks. Each plot has a panel per kind; the curves
    have the ceiling beside them. With a single window there are no curves: all blocks are in one
    plot.
    """
    groups: dict[str, list[str]] = {}
    whole, of_heads = _part_heads(sweep.blocks)
    for block in whole:
        groups.setdefault(_group_of(Block.parse(block)), []).append(block)
    if not groups:
        return ()
    is_single = len(sweep.labels) == 1
    if is_single:
        groups, of_heads = {"blocks": list(sweep.blocks)}, {}
    for shown in groups.values():
        shown.append(_CEILING)
    if compared:
        groups["contrasts"] = list(compared)
    plots = [_plot(group, "lines", shown, sweep, kinds) for group, shown in groups.items()]
    if not is_single:
        plots.append(_plot("heat_map", "heat map", whole, sweep, kinds))
    for block, heads in of_heads.items():
        name = f"heads_{block.replace('->', ' to ').replace(' ', '_')}"
        plots.append(_plot(name, "heat map", [block, *heads], sweep, kinds))
    return tuple(plots)


def _part_heads(blocks: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the blocks of curves, and block in all heads -> itself in one head after the other."""
    whole: list[str] = []
    of_heads: dict[str, list[str]] = {}
    for block in blocks:
        parsed = Block.parse(block)
        everywhere = str(replace(parsed, heads=None))
        if parsed.heads is not None and len(parsed.heads) == 1 and everywhere in blocks:
            of_heads.setdefault(everywhere, []).append(block)
        else:
            whole.append(block)
    return whole, of_heads


def _plot(
    name: str,
    style: Literal["lines", "heat map"],
    blocks: Sequence[str],
    sweep: Sweep,
    kinds: Sequence[str],
) -> ResultPlot:
    width = int((sweep.windows[:, 2] - sweep.windows[:, 1]).max())
    layers = "one layer" if width == 1 else f"up to {width} layers"
    shown = {}
    for block in blocks:
        shown[block] = _SHOWN.get(block, block.replace("->", f" {_CROSSED_ARROW} "))
    return ResultPlot(
        name=name,
        style=style,
        x=sweep.axis,
        y="block",
        shown=shown,
        fixed={"measure": MEASURES[0]},
        xlabel=_X_LABELS[sweep.axis],
        label="Change in probability (%)",
        title=f"Effect of blocking attention in {layers} on the first token's probability",
        panels=tuple(kinds),
        references=(_CEILING,),
    )


def _group_of(block: Block) -> str:
    if block.target.segments == {Segment.LAST}:
        return "to_last"
    if block.target.segments == {Segment.QUESTION}:
        if block.source.segments == {Segment.IMAGE}:
            return "image_to_question"
        if not block.source.segments.isdisjoint(_PATCHES):
            return "patches_to_question"
    return "other"
