"""The plan of a study: its cells, how far each is, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from rich.table import Table

from lightning_mllm.study.grid import Cell
from lightning_mllm.study.marker import CellFolder, State

# what a cell's time may be told from: finished cells of the same kind, else those that are the most alike
_ALIKE: tuple[Callable[[Cell], tuple[object, ...]], ...] = (
    lambda cell: (cell.checkpoint, cell.domain, cell.policy, cell.preset),
    lambda cell: (cell.checkpoint, cell.domain, cell.policy),
    lambda cell: (cell.domain, cell.policy),
    lambda cell: (cell.checkpoint, cell.policy),
    lambda cell: (cell.domain, cell.trains),
    lambda cell: (cell.trains,),
)


def plan(mine: Sequence[CellFolder], all_cells: Sequence[CellFolder], *, jobs: int) -> Table:
    """Return the cells with their state and how long they will take, going by finished cells that are alike.

    Args:
        mine: The cells of this part.
        all_cells: All cells.
        jobs: How many run side by side.
    """
    times = [(folder.cell, seconds) for folder in all_cells if (seconds := folder.seconds()) is not None]
    states = [folder.state for folder in mine]
    table = Table("cell", "state", title="Plan", title_justify="left")
    table.add_column("about", justify="right")
    known: list[float] = []
    for folder, state in zip(mine, states, strict=True):
        about = ""
        if state is not State.DONE:
            seconds = _estimate(folder.cell, times)
            known += [] if seconds is None else [seconds]
            about = "?" if seconds is None else duration(seconds)
        name = f"{folder.cell.id} (also {', '.join(folder.cell.also)})" if folder.cell.also else folder.cell.id
        table.add_row(name, str(state), about)
    left = len(states) - states.count(State.DONE)
    counts = ", ".join(f"{states.count(state)} {state}" for state in State if state in states)
    table.caption = counts + (f". Time: {_time_left(known, left, jobs)}" if left else "")
    return table


def duration(seconds: float) -> str:
    """Return e.g. "2 h 05 min", "12 min" or "40 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def _estimate(cell: Cell, times: Sequence[tuple[Cell, float]]) -> float | None:
    for kind in _ALIKE:
        if found := [seconds for other, seconds in times if kind(other) == kind(cell)]:
            return fmean(found)
    return None


def _time_left(known: Sequence[float], left: int, jobs: int) -> str:
    if not known:
        return "unknown until the first are done"
    unknown = f", {left - len(known)} unknown" if len(known) < left else ""
    return f"about {duration(sum(known) / jobs)}, going by finished cells{unknown}"
