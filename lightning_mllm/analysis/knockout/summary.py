"""From the rows of the information flow to numbers per kind of question, block and window, and to figures of them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.core.analysis import STATISTICS
from lightning_mllm.analysis.core.result import AnalysisResult, Plot
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.mask import why_nothing
from lightning_mllm.analysis.knockout.measures import COLUMNS, MEASURES, Cells, flow_numbers
from lightning_mllm.analysis.knockout.rows import FlowRow
from lightning_mllm.statistics.picture_bootstrap import (
    ALL,
    Bootstrap,
    Floats,
    Kept,
    common_questions,
    count_questions,
    no_numbers,
    pivot,
)
from lightning_mllm.store.rows import read_rows
from lightning_mllm.types import Segment, Table

log = logging.getLogger(__name__)

CEILING = Block.parse("image->text")  # in all layers
_CEILING = "ceiling"  # its name among the blocks
_PATCHES = {Segment.IMAGE_OBJECT, Segment.IMAGE_OTHER, Segment.IMAGE_RANDOM, Segment.IMAGE_DISTRACTOR}
_X_LABELS = {
    "centre": "Layer on which the window is centred",
    "window": "Layer on which the window is centred (its layers)",
}

_SHOWN = {_CEILING: "image \u219b text, all layers"}


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
        return {column: self._pivot(table, column, questions) for column in COLUMNS}

    def fair(self, cells: Cells, table: Table, questions: NDArray[Any]) -> dict[str, Floats]:
        """Return the same without those of random patches that could not avoid the object."""
        named = [block.source.segments | block.target.segments for block in map(Block.parse, self.blocks)]
        random = np.array([Segment.IMAGE_RANDOM in each for each in named], dtype=bool)
        overlap = random[:, None] & (self._pivot(table, "control_overlap", questions) > 0)
        return {column: np.where(overlap, np.nan, each) for column, each in cells.items()}

    def ceiling(self, above: Table, questions: NDArray[Any]) -> dict[str, Floats]:
        """Return each column of the ceiling as (questions, 1, windows), the same in all windows."""
        axes, there = {"ceiling": (True,)}, ~above["empty"]
        found = {column: pivot(above, column, axes, questions, there) for column in COLUMNS}
        return {column: np.repeat(each[..., None], len(self.windows), axis=2) for column, each in found.items()}

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
    least_per_answer: int = 20,
    bootstrap: Bootstrap = Bootstrap(),
    settings: Mapping[str, Any] | None = None,
) -> AnalysisResult:
    """Return the numbers of rows, with their intervals.

    Args:
        table: Rows of `FlowRow`.
        name: Of the result.
        contrasts: Pairs of blocks; their differences follow behind the blocks. Questions whose random patches could
            not avoid the object count in none with such patches.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; by default all.
        least_per_answer: With how many questions a right answer has numbers of its own, `<kind>: <answer>`, where a
            kind has several answers.
        bootstrap: How intervals are drawn.
        settings: What decided the rows.

    Returns:
        On the axes kind, block, centre, measure and statistic. Where windows share a centre, the third axis is
        `window` instead, with coordinates such as "4 (3-5)": layers 3 to 5, around layer 4. The block `ceiling`, which
        is in all layers, is the same for all windows.
    """
    kept, (table, above) = Kept.of(table, kind_depth), _parted(table)
    sweep = _Sweep.of(table)
    if not len(kept.ids):
        log.warning("%s: none of %d questions is looked into.", name, len(np.unique(table["sample_id"])))
    _warn_of_nothing(table, sweep, name)
    groups = {**kept.groups, **_by_answer(table, kept, least_per_answer)}
    place = sweep.blocks.index
    pairs = {f"{ours} minus {theirs}": (place(ours), place(theirs)) for ours, theirs in contrasts if sweep.blocks}
    coords: dict[str, tuple[Any, ...]] = {
        "kind": tuple(groups),
        "block": (*sweep.blocks, *[_CEILING][: len(sweep.blocks)], *pairs),
        sweep.axis: sweep.places,
        "measure": MEASURES,
        "statistic": STATISTICS,
    }
    values, cells = no_numbers(coords), sweep.cells(table, kept.ids)
    fair, ceiling = sweep.fair(cells, table, kept.ids), sweep.ceiling(above, kept.ids)
    for index, (kind, rows) in enumerate(groups.items() if len(kept.ids) else ()):
        own, own_fair, own_ceiling = (
            {column: each[rows] for column, each in some.items()} for some in (cells, fair, ceiling)
        )
        draws = bootstrap.draw(kept.pictures[rows], kind)
        values[index] = flow_numbers(own, own_fair, own_ceiling, [*pairs.values()], draws)
    more = {
        **{"kind_depth": kind_depth, "least_per_answer": least_per_answer, "bootstrap": asdict(bootstrap)},
        "found": _found(table, kept, sweep, kind_depth),
    }
    plots = _plots(sweep, [*pairs], [*kept.groups])
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


def _parted(table: Table) -> tuple[Table, Table]:
    """Return the rows of the sweep, with those that are left out, and the rows of the ceiling."""
    above = table["ceiling"]
    swept, ceiling = ({column: cells[which] for column, cells in table.items()} for which in (~above, above))
    return swept, ceiling


def _by_answer(table: Table, kept: Kept, least: int) -> dict[str, NDArray[np.int64]]:
    """Return the questions of each right answer of a kind, if they are enough and not all of the kind's."""
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


def _plots(sweep: _Sweep, compared: Sequence[str], kinds: Sequence[str]) -> tuple[Plot, ...]:
    """Return the paper's three families, what is in none of them, the contrasts, and a heat map of all blocks.

    Each has a panel per kind; the curves have the ceiling beside them.
    """
    families: dict[str, list[str]] = {}
    for block in sweep.blocks:
        families.setdefault(_family(Block.parse(block)), []).append(block)
    if not families:
        return ()
    families = {family: [*shown, _CEILING] for family, shown in families.items()}
    if compared:
        families["contrasts"] = list(compared)
    lines = [_plot(family, "lines", shown, sweep, kinds) for family, shown in families.items()]
    return (*lines, _plot("heat_map", "heat map", sweep.blocks, sweep, kinds))


def _plot(name: str, style: Any, blocks: Sequence[str], sweep: _Sweep, kinds: Sequence[str]) -> Plot:
    width = int((sweep.windows[:, 2] - sweep.windows[:, 1]).max())
    layers = "one layer" if width == 1 else f"up to {width} layers"
    return Plot(
        name=name,
        style=style,
        x=sweep.axis,
        y="block",
        shown={block: _SHOWN.get(block, block.replace("->", " \u219b ")) for block in blocks},  # a crossed arrow
        fixed={"measure": MEASURES[0]},
        xlabel=_X_LABELS[sweep.axis],
        label="Change in probability (%)",
        title=f"Effect of blocking attention in {layers} on the first token's probability",
        panels=tuple(kinds),
    )


def _family(block: Block) -> str:
    if block.target.segments == {Segment.LAST}:
        return "to_last"
    if block.target.segments == {Segment.QUESTION} and block.source.segments == {Segment.IMAGE}:
        return "image_to_question"
    if block.target.segments == {Segment.QUESTION} and not block.source.segments.isdisjoint(_PATCHES):
        return "patches_to_question"
    return "other"
