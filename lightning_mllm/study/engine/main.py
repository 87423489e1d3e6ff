"""`lightning study`: shows the plan, runs what is not done, and writes what came out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Console

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.cell_folder import AnyFolder, Folder, State, refuse_changed
from lightning_mllm.study.engine.executor import Failure, Lightning, Runner, in_a_process, share_of_threads
from lightning_mllm.study.engine.locks import locked
from lightning_mllm.study.engine.plan import plan, share_of
from lightning_mllm.study.engine.runnable import RunnableStudy
from lightning_mllm.study.engine.wandb_summary import log_summary


def run_study(study: RunnableStudy, lightning: Lightning | None = None) -> list[Failure]:
    """Run a study, or a part of it; what is done is not done again.

    Args:
        study: The study.
        lightning: Runs the command line of a cell; by default in a process of its own.

    Returns:
        The cells that failed; the others are done, unless a failure concerns all, or another process has them.

    Raises:
        ConfigError: The study cannot work, or finished cells were made otherwise; nothing has run then. Or its folder
            has no locks.
        DataError: A file of a finished cell is missing, or can't be read.
    """
    study.check()
    if study.jobs < 1:
        raise ConfigError(f"--jobs is {study.jobs}; at least one cell runs at a time.")
    cells = study.all_cells()
    folders = {cell.id: Folder(cell, study.folder / "cells" / cell.id) for cell in cells}
    mine = [folders[cell.id] for cell in share_of(cells, study.cells)]
    refuse_changed(list(folders.values()))
    console = Console()
    console.print(plan(mine, list(folders.values()), jobs=study.jobs))
    if study.dry_run:
        return []
    to_run = [folder for folder in mine if folder.state is not State.DONE]
    lightning = lightning or partial(in_a_process, threads=share_of_threads(study.jobs))
    failures = Runner(study, lightning).run(to_run, study.jobs)
    _tell(console, to_run, failures)  # first: the report may be refused
    with locked(study.folder / "report.lock", wait=True):  # several machines end at about the same time
        report = study.write_report(list(folders.values()))
        if all(folder.state is State.DONE for folder in folders.values()):
            log_summary(study, study.tables)
    if report is not None:
        console.print(f"Results are in {report}", highlight=False)
    return failures


def _tell(console: Console, to_run: Sequence[AnyFolder], failures: Sequence[Failure]) -> None:
    """Say which cells failed and why, and which others are left."""
    for failure in failures:
        console.print(f"{failure.folder.cell.id} failed: {failure.reason}", style="red", markup=False)
        console.print(f"  Its log is {failure.folder.log}", markup=False, highlight=False)
    if failures:
        console.print(
            f"{len(failures)} of {len(to_run)} cells failed. Run the same command again to try them once more."
        )
    failed = {failure.folder for failure in failures}
    left = [folder for folder in to_run if folder not in failed and folder.state is not State.DONE]
    if left and any(failure.concerns_all for failure in failures):
        console.print(f"{len(left)} others were not started, since the same would become of them.")
    elif left:
        console.print(f"{len(left)} cells are being run by other processes.")
