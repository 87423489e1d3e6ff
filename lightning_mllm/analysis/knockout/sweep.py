"""Which blocks and windows are in the rows, and their cells: questions by blocks by windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.analysis.knockout.measures import COLUMNS, Cells
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.question_table import pivot_question_table
from lightning_mllm.types import Segment, Table


@dataclass(frozen=True, eq=False)
class Sweep:
    """What was blocked in the rows, and in which layers.

    Attributes:
        blocks: In the order of the rows.
        windows: (windows, 3): centre, start and stop of each, sorted.
        window: (rows,), number of the window of a row; -1 for one that is left out.
        axis: `centre` where the centres tell the windows apart, else `window`.
        labels: Names of the windows on that axis: 4, or "4 (3-5)" for layers 3 to 5 around layer 4.
    """

    blocks: tuple[str, ...]
    windows: NDArray[np.int64]
    window: NDArray[np.int64]
    axis: str
    labels: tuple[int | str, ...]

    @classmethod
    def of(cls, table: Table) -> Sweep:
        """Find them in rows, without those of the ceiling."""
        measured = table["measured"]
        bounds = [table[column][measured] for column in ("centre", "start", "stop")]
        windows, which = np.unique(np.stack(bounds, axis=1), axis=0, return_inverse=True)
        window = np.full(len(measured), -1)
        window[measured] = which.reshape(-1)
        blocks = tuple(dict.fromkeys(table["block"][measured].tolist()))
        centres = windows[:, 0]
        if len(np.unique(centres)) == len(windows):
            return cls(blocks, windows, window, "centre", tuple(centres.tolist()))
        labels = [f"{centre} ({start}-{stop - 1})" for centre, start, stop in windows.tolist()]
        return cls(blocks, windows, window, "window", tuple(labels))

    def cells(self, table: Table, questions: NDArray[Any]) -> dict[str, Floats]:
        """Return each column as (questions, blocks, windows); NaN where nothing is blocked."""
        return {column: self._pivot(table, column, questions) for column in COLUMNS}

    def without_overlap(
        self, cells: Cells, table: Table, questions: NDArray[Any]
    ) -> dict[str, Floats]:
        """Return the cells without those of random patches that could not avoid the object."""
        random = []
        for block in map(Block.parse, self.blocks):
            random.append(Segment.IMAGE_RANDOM in block.source.segments | block.target.segments)
        overlap = self._pivot(table, "control_overlap", questions) > 0
        unfair = np.array(random, dtype=bool)[:, None] & overlap
        return {column: np.where(unfair, np.nan, each) for column, each in cells.items()}

    def ceiling(self, above: Table, questions: NDArray[Any]) -> dict[str, Floats]:
        """Return each column of the ceiling as (questions, 1, windows), the same in all windows."""
        axes, there = {"ceiling": (True,)}, ~above["empty"]
        cells = {}
        for column in COLUMNS:
            found = pivot_question_table(above, column, axes, questions, there)
            cells[column] = np.repeat(found[..., None], len(self.windows), axis=2)
        return cells

    def _pivot(self, table: Table, column: str, questions: NDArray[Any]) -> Floats:
        axes = {"block": self.blocks, "window": range(len(self.windows))}
        blocked = table["measured"] & ~table["empty"]
        return pivot_question_table(
            {**table, "window": self.window}, column, axes, questions, blocked
        )


def sweep_ceiling(table: Table) -> tuple[Table, Table]:
    """Return the rows of the sweep, with those that are left out, and the rows of the ceiling."""
    above = table["ceiling"]
    swept = {column: cells[~above] for column, cells in table.items()}
    ceiling = {column: cells[above] for column, cells in table.items()}
    return swept, ceiling
