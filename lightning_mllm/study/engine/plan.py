"""The plan of a study: its cells, how far each is, and how long the rest will take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from rich.table import Table

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.base import BaseCell, CellT
from lightning_mllm.study.engine.cell_folder import AnyFolder, State


def plan(mine: Sequence[AnyFolder], all_cells: Sequence[AnyFolder], *, jobs: int) -> Table:
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
        name = f"{folder.cell.id} ({folder.cell.note})" if folder.cell.note else folder.cell.id
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


def _estimate(cell: BaseCell, times: Sequence[tuple[BaseCell, float]]) -> float | None:
    """Return the mean time of the finished cells that are the most alike."""
    for rank, likeness in enumerate(cell.likeness):
        if found := [seconds for other, seconds in times if other.likeness[rank] == likeness]:
            return fmean(found)
    return None


def _time_left(known: Sequence[float], left: int, jobs: int) -> str:
    if not known:
        return "unknown until the first are done"
    unknown = f", {left - len(known)} unknown" if len(known) < left else ""
    return f"about {duration(sum(known) / jobs)}, going by finished cells{unknown}"


def share_of(cells: Sequence[CellT], share: str) -> list[CellT]:
    """Return the share of one machine, e.g. "3/8": the third of eight. Each share has cells of each kind.

    Raises:
        ConfigError: It is no such share.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", share)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(
            f"--cells is {share!r}; it says which part of how many, e.g. 3/8 for the third of eight, counted from 1. "
            "In a SLURM array that starts at 1 (--array=1-8): --cells $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT."
        )
    by_kind = sorted(cells, key=lambda cell: cell.order)
    mine = {cell.id for cell in by_kind[int(match[1]) - 1 :: int(match[2])]}  # dealt like cards
    return [cell for cell in cells if cell.id in mine]
