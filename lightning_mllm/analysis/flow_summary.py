"""From the rows of the information flow to numbers per kind of question, block and window, and to figures of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.base import STATISTICS, AnalysisResult, Plot
from lightning_mllm.analysis.blocks import Block
from lightning_mllm.analysis.flow_rows import FlowRow
from lightning_mllm.analysis.knockout import why_nothing
from lightning_mllm.analysis.rows import Table, read_rows
from lightning_mllm.analysis.summaries import (
    Bootstrap,
    Draws,
    Floats,
    Kept,
    Statistic,
    common_questions,
    count_questions,
    difference,
    estimate,
    mean,
    median,
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
_PATCHES = {Segment.IMAGE_OBJECT, Segment.IMAGE_OTHER, Segment.IMAGE_RANDOM}
_X_LABELS = {
    "centre": "Layer on which the window is centred",
    "window": "Layer on which the window is centred (its layers)",
}

Cells = Mapping[str, Floats]  # column -> (questions, numbers)


@dataclass(frozen=True, eq=False)
class _Sweep:
    """What was blocked in the rows, and where.

    Attributes:
        blocks: As they come.
        windows: (windows, 3): centre, start and stop of each, sorted.
        window: (rows,), which of them a row is of; -1 for one that is left out.
        axis: `centre` where the centres tell the windows apart, else `window`.
        places: How the windows are called on it: 4, or "4 (3-5)" for layers 3 to 5 around layer 4.
    """

    blocks: tuple[str, ...]
    windows: NDArray[np.int64]
    window: NDArray[np.int64]
    axis: str
    places: tuple[int | str, ...]

    @classmethod
    def of(cls, table: Table) -> _Sweep:
        measured = table["measured"]
        bounds = np.stack([table[column][measured] for column in ("centre", "start", "stop")], axis=1)
        windows, which = np.unique(bounds, axis=0, return_inverse=True)
        window = np.full(len(measured), -1)
        window[measured] = which.reshape(-1)
        blocks = tuple(dict.fromkeys(table["block"][measured].tolist()))
        if len(np.unique(windows[:, 0])) == len(windows):
            return cls(blocks, windows, window, "centre", tuple(windows[:, 0].tolist()))
        names = tuple(f"{centre} ({start}-{stop - 1})" for centre, start, stop in windows.tolist())
        return cls(blocks, windows, window, "window", names)

    def cells(self, table: Table, questions: NDArray[Any]) -> dict[str, Floats]:
        """Return each column as (questions, blocks, windows); NaN where nothing is blocked."""
        return {column: self._pivot(table, column, questions) for column in _COLUMNS}

    def fair(self, cells: Cells, table: Table, questions: NDArray[Any]) -> dict[str, Floats]:
        """Return the same without those of random patches that could not avoid the object."""
        named = [block.source.segments | block.target.segments for block in map(Block.parse, self.blocks)]
        random = np.array([Segment.IMAGE_RANDOM in each for each in named], dtype=bool)
        overlap = random[:, None] & (self._pivot(table, "control_overlap", questions) > 0)
        return {column: np.where(overlap, np.nan, each) for column, each in cells.items()}

    def _pivot(self, table: Table, column: str, questions: NDArray[Any]) -> Floats:
        axes = {"block": self.blocks, "window": range(len(self.windows))}
        blocked = table["measured"] & ~table["empty"]
        return pivot({**table, "window": self.window}, column, axes, questions, blocked)


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
        contrasts: Pairs of blocks; their differences follow behind the blocks. Questions whose random patches could
            not avoid the object count in none with such patches.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
        bootstrap: How intervals are drawn.
        settings: What decided the rows.

    Returns:
        On the axes kind, block, centre, measure and statistic. Where windows share a centre, the third axis is
        `window` instead, with coordinates such as "4 (3-5)": layers 3 to 5, around layer 4.
    """
    kept, sweep = Kept.of(table, kind_depth), _Sweep.of(table)
    if not len(kept.ids):
        log.warning("%s: none of %d questions is looked into.", name, len(np.unique(table["sample_id"])))
    _warn_of_nothing(table, sweep, name)
    place = sweep.blocks.index
    pairs = {f"{ours} minus {theirs}": (place(ours), place(theirs)) for ours, theirs in contrasts if sweep.blocks}
    coords: dict[str, tuple[Any, ...]] = {
        "kind": tuple(kept.groups),
        "block": (*sweep.blocks, *pairs),
        sweep.axis: sweep.places,
        "measure": MEASURES,
        "statistic": STATISTICS,
    }
    values, cells = no_numbers(coords), sweep.cells(table, kept.ids)
    fair = sweep.fair(cells, table, kept.ids)
    for index, (kind, rows) in enumerate(kept.groups.items() if len(kept.ids) else ()):
        own, own_fair = ({column: each[rows] for column, each in some.items()} for some in (cells, fair))
        values[index] = _numbers(own, own_fair, [*pairs.values()], bootstrap.draw(kept.pictures[rows], kind))
    more = {"kind_depth": kind_depth, "bootstrap": asdict(bootstrap), "found": _found(table, kept, sweep, kind_depth)}
    plots = _plots(sweep, [*pairs])
    return AnalysisResult(name, values, tuple(coords), coords, len(kept.ids), {**(settings or {}), **more}, plots)


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


def _numbers(cells: Cells, fair: Cells, pairs: Sequence[tuple[int, int]], draws: Draws) -> Floats:
    """Return (blocks and contrasts, windows, measures, statistics) of (questions, blocks, windows) cells.

    Args:
        cells: Column -> numbers.
        fair: The same, without those that count in no contrast.
        pairs: Blocks that are contrasted.
        draws: Of the bootstrap.
    """
    questions, blocks, windows = cells["p_before"].shape
    flat = {column: each.reshape(questions, -1) for column, each in cells.items()}
    own = [estimate(statistic, values, draws) for statistic, values in _statistics(flat)]
    parts = [np.stack(own, axis=1).reshape(blocks, windows, len(MEASURES), len(STATISTICS))]
    for pair in pairs:
        ours, theirs = ({column: each[:, block] for column, each in fair.items()} for block in pair)
        for column in _COLUMNS:
            neither = np.isnan(ours[column]) | np.isnan(theirs[column])
            ours[column], theirs[column] = (np.where(neither, np.nan, each[column]) for each in (ours, theirs))
        both = zip(_statistics(ours), _statistics(theirs), strict=True)
        parts.append(np.stack([difference(a, b, values, draws) for (a, values), (b, _) in both], axis=1)[None])
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


def _warn_of_nothing(table: Table, sweep: _Sweep, name: str) -> None:
    """Warn of blocks that hide nothing in any question."""
    for block in sweep.blocks:
        own = table["measured"] & (table["block"] == block)
        if table["empty"][own].all():
            has = (bool(table[f"{side}_size"][own].any()) for side in ("source", "target"))
            reason, count = why_nothing(Block.parse(block), *has), len(np.unique(table["sample_id"][own]))
            log.warning("%s: %s blocks nothing in any of %d questions: %s.", name, block, count, reason)


def _found(table: Table, kept: Kept, sweep: _Sweep, kind_depth: int | None) -> dict[str, Any]:
    """Return how many questions and pictures there are, for how many questions something is missing, and the sweep."""
    measured = table["measured"]
    empty = Counter(table["block"][measured & table["empty"] & (sweep.window == 0)].tolist())

    def count(column: str) -> int:
        return len(np.unique(table["sample_id"][measured & table[column].astype(bool)]))

    return {
        "questions": count_questions(table, kind_depth),
        "pictures": kept.count_pictures(),
        "without_a_set": dict(sorted(empty.items())),
        "with_control_overlap": count("control_overlap"),
        "with_another_token": count("token_differs"),
        "windows": sweep.windows.tolist(),
        "engines": np.unique(table["engine"][measured]).tolist(),
    }


def _plots(sweep: _Sweep, compared: Sequence[str]) -> tuple[Plot, ...]:
    """Return the paper's three families, what is in none of them, the contrasts, and a heat map of all blocks."""
    families: dict[str, list[str]] = {}
    for block in sweep.blocks:
        families.setdefault(_family(Block.parse(block)), []).append(block)
    if not families:
        return ()
    if compared:
        families["contrasts"] = list(compared)
    lines = [_plot(family, "lines", shown, sweep) for family, shown in families.items()]
    return (*lines, _plot("heat_map", "heat map", sweep.blocks, sweep))


def _plot(name: str, style: Any, blocks: Sequence[str], sweep: _Sweep) -> Plot:
    width = int((sweep.windows[:, 2] - sweep.windows[:, 1]).max())
    layers = "one layer" if width == 1 else f"up to {width} layers"
    return Plot(
        name=name,
        style=style,
        x=sweep.axis,
        y="block",
        shown={block: block.replace("->", " \u219b ") for block in blocks},  # a crossed arrow
        fixed={"measure": MEASURES[0]},
        xlabel=_X_LABELS[sweep.axis],
        label="Change in probability (%)",
        title=f"Effect of blocking attention in {layers} on the first token's probability",
    )


def _family(block: Block) -> str:
    if block.target.segments == {Segment.LAST}:
        return "to_last"
    if block.target.segments == {Segment.QUESTION} and block.source.segments == {Segment.IMAGE}:
        return "image_to_question"
    if block.target.segments == {Segment.QUESTION} and not block.source.segments.isdisjoint(_PATCHES):
        return "patches_to_question"
    return "other"
