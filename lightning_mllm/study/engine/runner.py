"""Runs the cells of a study, each at most once and in its own process, even if others fail."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.progress import console, format_duration, show_progress
from lightning_mllm.study.engine.cell_folder import (
    AnyFolder,
    CellState,
    Making,
    cell_folder_differences,
    cell_folder_making,
    refuse_changed_cell_folders,
)
from lightning_mllm.study.engine.locks import locked
from lightning_mllm.study.engine.runnable import RunnableStudy

logger = logging.getLogger(__name__)

# Runs the command line of a cell, appends what it prints to a file, and lets it inherit the file
# descriptor of the lock.
Lightning = Callable[[Sequence[str], Path, int], None]


@dataclass(frozen=True)
class RunnerFailure:
    """A cell that failed.

    Attributes:
        folder: The folder of the cell.
        reason: Why the cell failed, as a sentence.
        concerns_all: Whether the other cells would fail in the same way: no more are started.
    """

    folder: AnyFolder
    reason: str
    concerns_all: bool = False


def run_in_process(
    arguments: Sequence[str], log_file: Path, lock: int, *, threads: int | None = None
) -> None:
    """Run `lightning`.

    Args:
        arguments: Arguments of `lightning`.
        log_file: The file to which its output is appended.
        lock: File descriptor that it inherits, so that it keeps the cell if this process is killed.
        threads: Number of CPU threads; by default as many as torch takes.

    Raises:
        CalledProcessError: It failed.
    """
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with log_file.open("a") as file:
        subprocess.run(
            [sys.executable, "-m", "lightning_mllm", *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **limit},
            pass_fds=(lock,),
        )


def threads_per_run(jobs: int) -> int | None:
    """Return how many of the CPU threads that the study may use each job gets; None for one job."""
    if jobs == 1:
        return None
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    if allowed.isdecimal():
        threads = int(allowed)
    elif hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    else:
        threads = os.cpu_count() or 1
    return max(1, threads // jobs)


class Runner:
    """Runs the cells that are not done.

    Args:
        study: The study that the cells are of.
        lightning: What runs the command line of a cell.
    """

    def __init__(self, study: RunnableStudy, lightning: Lightning) -> None:
        self._study, self._lightning = study, lightning
        self._stop = threading.Event()  # set when no further cell is to be started

    def run(self, folders: Sequence[AnyFolder], jobs: int) -> list[RunnerFailure]:
        """Run cells, `jobs` of them at the same time, and return those that failed.

        Raises:
            ConfigError: Their folder has no locks.
        """
        planned = [(folder, cell_folder_making(folder.cell)) for folder in folders]
        with ThreadPoolExecutor(jobs) as pool, show_progress("Cells", len(planned)) as bar:
            try:
                futures = {pool.submit(self._run_cell, *each): each[0] for each in planned}
                for number, future in enumerate(as_completed(futures), start=1):
                    failure = future.result()
                    bar.advance()
                    if failure is None and futures[future].state is CellState.DONE:
                        self._print_done(futures[future], f"{number}/{len(planned)}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # interrupted: start no further cell
                raise
        results = [future.result() for future in futures]  # in the order of the cells
        return [failure for failure in results if failure is not None]

    def _print_done(self, folder: AnyFolder, count: str) -> None:
        """Print a line for a finished cell: its main number, and how long it took."""
        parts = [count, folder.cell.id, self._study.main_number(folder)]
        seconds = folder.seconds()
        parts.append("" if seconds is None else format_duration(seconds))
        console.print(" · ".join(filter(None, parts)), markup=False, soft_wrap=True)

    def _run_cell(self, folder: AnyFolder, making: Making) -> RunnerFailure | None:
        if self._stop.is_set():
            return None
        with locked(folder.path / "lock", wait=False) as lock:
            if lock is None:
                logger.info("%s is being run by another process", folder.cell.id)
                return None
            if folder.state is CellState.DONE:
                return None
            failure = self._run_and_check(folder, making, lock)
            if failure is not None:
                logger.error("%s failed", folder.cell.id)
                if failure.concerns_all:
                    self._stop.set()
            else:
                self._study.tidy(folder)
        return failure

    def _run_and_check(self, folder: AnyFolder, making: Making, lock: int) -> RunnerFailure | None:
        began = time.monotonic()
        continuation: list[str] = []
        try:
            refuse_changed_cell_folders([folder])  # another process may have begun it since
            _refuse_edited(folder, making)
            continuation = folder.continuation()
            if continuation:
                logger.info("Resuming %s", folder.cell.id)
            folder.begin(making)
            self._lightning([*_arguments(self._study, folder), *continuation], folder.log, lock)
            _refuse_edited(folder, making)
        except subprocess.CalledProcessError as error:
            reason = f"exit code {error.returncode}; its log ends with: {_end_of(folder.log)}"
            if continuation:
                reason += f" If it can't resume from {continuation[1]}, delete {folder.path}"
                reason += " to start the cell again."
            return RunnerFailure(folder, reason)
        except (ConfigError, DataError, OSError) as error:
            return RunnerFailure(folder, str(error))
        try:
            self._study.check_cell(folder)
        except DataError as error:  # it ran to its end, but not as the study needs it
            return RunnerFailure(folder, str(error), concerns_all=True)
        folder.finish(making, None if continuation else time.monotonic() - began)
        return None


def _refuse_edited(folder: AnyFolder, making: Making) -> None:
    """Refuse a cell whose settings have changed since the study was started.

    Raises:
        ConfigError: Something has changed.
    """
    if changed := cell_folder_differences(making, cell_folder_making(folder.cell)):
        raise ConfigError(
            f"{', '.join(changed)} changed while the study ran, so that its cells would differ in "
            f"it. If {folder.path} has a run, delete it; then run the study again."
        )


def _arguments(study: RunnableStudy, folder: AnyFolder) -> list[str]:
    """Return the whole command line of a cell, but for what it resumes from."""
    return [
        *folder.cell.arguments(),
        *("--trainer.run.root", str(folder.path)),
        *("--trainer.run.name", folder.cell.id),
        *("--trainer.run.group", study.name),
        *("--trainer.run.project", study.project),
        *("--trainer.run.wandb", study.wandb),
    ]


def _end_of(path: Path, lines: int = 3) -> str:
    text = path.read_text(errors="replace").strip() if path.is_file() else ""
    return " / ".join(text.splitlines()[-lines:]) or "(nothing)"
