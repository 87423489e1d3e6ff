"""The plan of a study: its cells, how far each is, and how long the rest will take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from rich.table import Table

from lightning_mllm.errors import ConfigError
from lightning_mllm.progress import format_duration
from lightning_mllm.study.engine.base import BaseCell, CellT
from lightning_mllm.study.engine.cell_folder import AnyFolder, CellState

Times = Sequence[tuple[BaseCell, float]]  # finished cells, with their seconds


def plan(mine: Sequence[AnyFolder], all_cells: Sequence[AnyFolder], *, jobs: int) -> Table:
    """Return a table of cells with their state and the time that they will take.

    Args:
        mine: The cells of this part.
        all_cells: All cells; the times of finished ones are what the estimates rest on.
        jobs: How many run at the same time.
    """
    times = _times_of(all_cells)
    table = Table("cell", "state", title="Plan", title_justify="left")
    table.add_column("about", justify="right")
    states, known = [], []
    for folder in mine:
        state, about = folder.state, ""
        states.append(state)
        if state is not CellState.DONE:
            seconds = _estimate(folder.cell, times)
            about = "?" if seconds is None else format_duration(seconds)
            if seconds is not None:
                known.append(seconds)
        note = f" ({folder.cell.note})" if folder.cell.note else ""
        table.add_row(f"{folder.cell.id}{note}", str(state), about)
    counts = [f"{states.count(state)} {state}" for state in CellState if state in states]
    table.caption = ", ".join(counts)
    left = len(states) - states.count(CellState.DONE)
    if left:
        table.caption += f". Time: {_time_left(known, left, jobs)}"
    return table


def _times_of(folders: Sequence[AnyFolder]) -> Times:
    times = []
    for folder in folders:
        seconds = folder.seconds()
        if seconds is not None:
            times.append((folder.cell, seconds))
    return times


def _estimate(cell: BaseCell, times: Times) -> float | None:
    """Return the mean time of the finished cells that share the first key, else the second."""
    for key in (0, 1):
        found = [seconds for other, seconds in times if other.time_keys[key] == cell.time_keys[key]]
        if found:
            return fmean(found)
    return None


def _time_left(known: Sequence[float], left: int, jobs: int) -> str:
    if not known:
        return "unknown until the first are done"
    unknown = f", {left - len(known)} unknown" if len(known) < left else ""
    return f"about {format_duration(sum(known) / jobs)}, going by finished cells{unknown}"


def planned_cells_of_machine(cells: Sequence[CellT], part: str) -> list[CellT]:
    """Return the cells of one machine, e.g. of "3/8", the third of eight.

    Cells are dealt like cards, sorted by their `order`: each machine gets some of each kind.

    Raises:
        ConfigError: It is not a part of a whole.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(
            f"--cells is {part!r}; it says which part of how many, e.g. 3/8 for the third of "
            "eight, counted from 1. In a SLURM array that starts at 1 (--array=1-8): "
            "--cells $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT."
        )
    dealt = sorted(cells, key=lambda cell: cell.order)[int(match[1]) - 1 :: int(match[2])]
    mine = {cell.id for cell in dealt}
    return [cell for cell in cells if cell.id in mine]
