"""`lightning study`: shows the plan, runs what is not done, and writes what came out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from rich.console import Console
from rich.table import Table

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.config import Study
from lightning_mllm.study.grid import cells_of, share_of
from lightning_mllm.study.marker import CellFolder, State, refuse_changed
from lightning_mllm.study.report import log_summary, write_report
from lightning_mllm.study.runner import Failure, Lightning, in_a_process, run_cells


@dataclass(frozen=True, kw_only=True)
class StudyCommand(Study):
    """A study, and what of it is done now.

    Attributes:
        cells: Which part of how many, e.g. 3/8 on the third of eight machines. In a SLURM array from 1 on:
            `--cells $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT`.
        jobs: How many cells run side by side, in a process each, with an equal share of the CPU cores.
        dry_run: Only show the plan.
    """

    cells: str = "1/1"
    jobs: int = 1
    dry_run: bool = False


def run_study(study: StudyCommand, lightning: Lightning | None = None) -> list[Failure]:
    """Run a study, or a part of it; what is done is not done again.

    Args:
        study: The study.
        lightning: Runs the command line of a cell; by default in a process of its own.

    Returns:
        The cells that failed; the others are done.

    Raises:
        ConfigError: The study cannot work, or finished cells were made otherwise; nothing has run then.
        DataError: A file of a finished cell is missing.
    """
    study.check()
    if study.jobs < 1:
        raise ConfigError(f"--jobs is {study.jobs}; at least one cell runs at a time.")
    folders = [CellFolder(cell, study.folder / "cells" / cell.id) for cell in cells_of(study)]
    mine = [folders[k] for k in share_of(range(len(folders)), study.cells)]
    refuse_changed(folders)
    console = Console()
    console.print(plan(mine, folders, jobs=study.jobs))
    if study.dry_run:
        return []
    if lightning is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        lightning = partial(in_a_process, threads=max(1, cores // study.jobs) if study.jobs > 1 else None)
    to_run = [folder for folder in mine if folder.state is not State.DONE]
    failures = run_cells(study, to_run, jobs=study.jobs, lightning=lightning)
    report = write_report(study, folders)
    if len(failures) < len(to_run) and all(folder.state is State.DONE for folder in folders):
        log_summary(study)
    for failure in failures:
        console.print(f"{failure.folder.cell.id} failed: {failure.reason}", style="red", markup=False)
        console.print(f"  Its log is {failure.folder.log}", markup=False, highlight=False)
    if failures:
        console.print(
            f"{len(failures)} of {len(to_run)} cells failed. Run the same command again to try them once more."
        )
    if report is not None:
        console.print(f"Results are in {report}", highlight=False)
    return failures


def plan(mine: Sequence[CellFolder], all_cells: Sequence[CellFolder], *, jobs: int) -> Table:
    """Return the cells with their state and how long they will take, going by finished cells of the same kind.

    Args:
        mine: The cells of this part.
        all_cells: All cells.
        jobs: How many run side by side.
    """
    times: dict[tuple[str, ...], list[float]] = {}
    for folder in all_cells:
        if (seconds := folder.seconds()) is not None:
            times.setdefault(_kind(folder), []).append(seconds)
    table = Table("cell", "state", title="Plan", title_justify="left")
    table.add_column("about", justify="right")
    total, unknown = 0.0, 0
    for folder in mine:
        state, known = folder.state, times.get(_kind(folder))
        about = ""
        if state is not State.DONE:
            about = duration(fmean(known)) if known else "?"
            total, unknown = (total + fmean(known), unknown) if known else (total, unknown + 1)
        table.add_row(folder.cell.id, str(state), about)
    left = (
        f"{duration(total / jobs)} for the cells whose time is known" if total else "unknown until the first are done"
    )
    states = [folder.state for folder in mine]
    counts = ", ".join(f"{states.count(state)} {state}" for state in State if state in states)
    time_left = (
        "" if state_is_done(states) else f". Time: {left}" + (f", {unknown} unknown" if total and unknown else "")
    )
    table.caption = f"{counts}{time_left}"
    return table


def duration(seconds: float) -> str:
    """Return e.g. "2 h 05 min", "12 min" or "40 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def state_is_done(states: Sequence[State]) -> bool:
    """Return whether nothing is left to do."""
    return all(state is State.DONE for state in states)


def _kind(folder: CellFolder) -> tuple[str, ...]:
    return folder.cell.checkpoint, folder.cell.domain, folder.cell.policy
