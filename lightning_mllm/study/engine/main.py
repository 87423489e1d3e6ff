"""`lightning study`: shows the plan, runs what is not done, and writes what came out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lightning_mllm.errors import ConfigError
from lightning_mllm.progress import console, show_progress
from lightning_mllm.study.engine.base import BaseCell
from lightning_mllm.study.engine.cell_folder import (
    AnyFolder,
    CellFolder,
    refuse_changed_cell_folders,
    unfinished_cell_folders,
)
from lightning_mllm.study.engine.locks import locked
from lightning_mllm.study.engine.plan import plan, planned_cells_of_machine
from lightning_mllm.study.engine.runnable import RunnableStudy
from lightning_mllm.study.engine.runner import (
    Lightning,
    Runner,
    RunnerFailure,
    run_in_process,
    threads_per_run,
)
from lightning_mllm.study.engine.wandb_summary import log_wandb_summary


def run_study(study: RunnableStudy, lightning: Lightning | None = None) -> list[RunnerFailure]:
    """Run a study, or a part of it; what is done is not done again.

    Args:
        study: The study.
        lightning: What runs the command line of a cell; by default a new process of `lightning`.

    Returns:
        The cells that failed. The others are done, unless a failure concerns all cells, or another
        process is running them.

    Raises:
        ConfigError: The study cannot work, or finished cells were created with different settings;
            then nothing has run. Or files in its folder can't be locked.
        DataError: A file of a finished cell is missing, or can't be read.
    """
    study.check()
    if study.jobs < 1:
        raise ConfigError(f"--jobs is {study.jobs}; at least one cell runs at a time.")
    cells = study.all_cells()
    folders = _folders_of(study, cells)
    mine = _folders_of(study, planned_cells_of_machine(cells, study.cells))
    refuse_changed_cell_folders(folders)
    console.print(plan(mine, folders, jobs=study.jobs))
    if study.dry_run:
        return []
    to_run = unfinished_cell_folders(mine)
    lightning = lightning or partial(run_in_process, threads=threads_per_run(study.jobs))
    failures = Runner(study, lightning).run(to_run, study.jobs)
    _print_failures(to_run, failures)  # first: the report may be refused
    # several machines end at about the same time
    with locked(study.folder / "report.lock", wait=True):
        with show_progress("Writing the report"):
            report = study.write_report(folders)
        if not unfinished_cell_folders(folders):
            log_wandb_summary(study, study.tables)
    if report is not None:
        console.print(f"Results are in {report}", soft_wrap=True)
    return failures


def _folders_of(study: RunnableStudy, cells: Sequence[BaseCell]) -> list[AnyFolder]:
    return [CellFolder(cell, study.folder / "cells" / cell.id) for cell in cells]


def _print_failures(to_run: Sequence[AnyFolder], failures: Sequence[RunnerFailure]) -> None:
    """Print which cells failed and why, and how many others are left."""
    failed, concern_all = set(), False
    for failure in failures:
        failed.add(failure.folder)
        concern_all = concern_all or failure.concerns_all
        reason = f"{failure.folder.cell.id} failed: {failure.reason}"
        console.print(reason, style="red", markup=False)
        console.print(f"  Its log is {failure.folder.log}", markup=False)
    if failures:
        console.print(
            f"{len(failures)} of {len(to_run)} cells failed. Run the same command again to try "
            "them once more."
        )
    left = [folder for folder in unfinished_cell_folders(to_run) if folder not in failed]
    if left and concern_all:
        console.print(
            f"{len(left)} others were not started, since they would fail in the same way."
        )
    elif left:
        console.print(f"{len(left)} cells are being run by other processes.")
