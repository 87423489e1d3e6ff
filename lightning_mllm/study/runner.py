"""Runs the cells of a study: each at most once, each in a process of its own, all others even if one fails."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.errors import DataError
from lightning_mllm.study.cell_files import check_complete
from lightning_mllm.study.config import Study
from lightning_mllm.study.marker import CellFolder, State

log = logging.getLogger(__name__)

Lightning = Callable[[Sequence[str], Path], None]  # runs the command line and adds what it prints to a file


@dataclass(frozen=True)
class Failure:
    """A cell that did not come to its end, and why."""

    folder: CellFolder
    reason: str


def in_a_process(arguments: Sequence[str], log_file: Path, *, threads: int | None = None) -> None:
    """Run `lightning`.

    Args:
        arguments: Its arguments.
        log_file: Gets what it prints.
        threads: CPU threads; by default as many as torch takes.

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
            env={**limit, **os.environ},
        )


def run_cells(study: Study, folders: Sequence[CellFolder], *, jobs: int, lightning: Lightning) -> list[Failure]:
    """Run those of the cells that are not done.

    Args:
        study: The study.
        folders: The cells.
        jobs: How many run side by side.
        lightning: Runs the command line.

    Returns:
        The cells that failed.
    """
    with ThreadPoolExecutor(jobs) as pool:
        try:
            results = [pool.submit(_run, study, folder, lightning) for folder in folders]
            return [failure for result in results if (failure := result.result())]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # interrupted: start no further cell
            raise


def _run(study: Study, folder: CellFolder, lightning: Lightning) -> Failure | None:
    folder.path.mkdir(parents=True, exist_ok=True)
    with _claimed(folder) as mine:
        if not mine:
            log.info("%s is being run by another process", folder.cell.id)
            return None
        if folder.state is State.DONE:
            return None
        checkpoint = folder.last_checkpoint()
        log.info("%s %s", "Resuming" if checkpoint else "Running", folder.cell.id)
        began = time.monotonic()
        try:
            folder.begin()
            lightning(_arguments(study, folder, checkpoint), folder.log)
            check_complete(folder, scorer=study.scorer, richness=study.richness, drift=study.drift)
            folder.finish(None if checkpoint else time.monotonic() - began)
        except subprocess.CalledProcessError as error:
            log.error("%s failed; the others go on", folder.cell.id)
            return Failure(folder, f"exit code {error.returncode}; its log ends with: {_end_of(folder.log)}")
        except (DataError, OSError) as error:
            log.error("%s failed; the others go on", folder.cell.id)
            return Failure(folder, str(error))
        if not study.keep_checkpoints:
            for run in folder.runs():
                shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return None


def _arguments(study: Study, folder: CellFolder, checkpoint: Path | None) -> list[str]:
    """Return the whole command line of a cell."""
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint else []
    return [
        *folder.cell.arguments(),
        *("--trainer.run.root", str(folder.path)),
        *("--trainer.run.name", folder.cell.id),
        *("--trainer.run.group", study.name),
        *("--trainer.run.project", study.project),
        *("--trainer.run.wandb", study.wandb),
        *resume,
    ]


@contextmanager
def _claimed(folder: CellFolder) -> Iterator[bool]:
    """Give whether this process has the cell to itself; a process that dies gives it up."""
    with (folder.path / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _end_of(path: Path, lines: int = 3) -> str:
    text = path.read_text(errors="replace").strip() if path.is_file() else ""
    return " / ".join(text.splitlines()[-lines:]) or "(nothing)"
