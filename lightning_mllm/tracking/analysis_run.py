"""Analyses of one model on one split, from the first batch to the files that they leave behind."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import KnownAnswers
from lightning_mllm.store.files import write_json, write_rows
from lightning_mllm.store.manifest import MANIFEST
from lightning_mllm.tracking.figures.analysis import draw_plots
from lightning_mllm.tracking.loggers import log_image, log_table

_End = Literal["done", "failed"]  # how a process left

_RESUMED = ("rows*.csv", "*.safetensors", MANIFEST)
_PAUSE = 1.0  # seconds between looks at how far the other processes are
_PATIENCE = 600.0  # seconds between messages about which of them are waited for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnalysisRun:
    """What all processes of a run do together: `begin`, then `update` of each analysis per batch, then `finish`.

    Attributes:
        analyses: What is done.
        folder: Each gets a folder of its name in it; None for a trial that leaves nothing behind.
        share: Number of this process.
        shares: How many processes there are.
        barrier: Waits for all processes.
        parent: The process that has started this one and watches over it; None where a person has.

    Raises:
        ConfigError: Several processes have no folder in which to put their rows together.
    """

    analyses: Sequence[Analysis]
    folder: Path | None
    share: int
    shares: int
    barrier: Callable[[], Any]
    parent: int | None = None

    def __post_init__(self) -> None:
        if self.folder is None and self.shares > 1:
            raise ConfigError(
                f"{self.shares} processes put what they find together in the run's folder, and a run without a logger "
                "has none. Leave trainer.logger alone, or use one device."
            )

    @classmethod
    def of(cls, analyses: Sequence[Analysis], trainer: Any, where: str) -> AnalysisRun:
        """Return that of a Trainer's processes.

        Args:
            analyses: What is done.
            trainer: Lightning's.
            where: Folder below that of the run; a trial with `fast_dev_run` has none, and no rows to put together.
        """
        return cls(
            analyses,
            folder=Path(trainer.default_root_dir, where) if trainer.loggers else None,
            share=trainer.global_rank,
            shares=1 if trainer.fast_dev_run else trainer.world_size,
            barrier=trainer.strategy.barrier,
            parent=os.getppid() if trainer.local_rank else None,
        )

    def begin(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source: Mapping[str, Any],
        earlier: Path | None = None,
    ) -> None:
        """Get ready for the first batch.

        Args:
            tokenizer: The model's.
            source: Which model and data these are.
            earlier: Such a folder of a run that was stopped: what it has finished is copied.

        Raises:
            ConfigError: The earlier run has no such analysis, or made it otherwise.
        """
        if self.share == 0:
            if earlier is not None and self.folder is not None:
                for analysis in self.analyses:
                    _copy(earlier / analysis.name, self.folder / analysis.name)
            self._clear_markers()  # of a run in this folder that was killed
        self.barrier()
        answers = KnownAnswers()
        for analysis in self.analyses:
            folder = None if self.folder is None else self.folder / analysis.name
            analysis.prepare(tokenizer, folder, source, self.share, answers)

    def finish(self, loggers: Sequence[Any], key: str, step: int) -> list[AnalysisResult]:
        """Put together what all processes have found; the first one writes it down and returns it.

        Args:
            loggers: Of the run.
            key: What the results are called there.
            step: Optimiser steps of the run.
        """
        for analysis in self.analyses:
            analysis.settle()
        self._wait_for_all()
        self.barrier()
        try:
            return self._put_together(loggers, key, step) if self.share == 0 else []
        finally:
            self.barrier()  # where the others stand, whatever went wrong

    def fail(self) -> None:
        """Tell the other processes that this one leaves by an exception, unless that is because one of them has."""
        if self.folder is not None and self.shares > 1 and not self._failed():
            self._leave_marker("failed")

    def _wait_for_all(self) -> None:
        """Wait until all processes have their rows, and say now and then which are waited for.

        One can be done hours before another, and a barrier, as all that processes do together, ends after minutes with
        an error. So each leaves a marker in the folder, and looks for those of the others.

        Raises:
            RuntimeError: Another process has failed, or the one that has started this one is gone, so that nothing
                will come of waiting.
        """
        if self.folder is None:
            return
        self._leave_marker("done")
        level, due = logging.INFO, time.monotonic()
        while missing := [
            share for share in range(self.shares) if not self._marker(share, "done").exists()
        ]:
            if failed := self._failed():
                raise RuntimeError(
                    f"Of {self.shares} processes number {failed[0]} has left with an error, which its own output "
                    f"shows, so number {self.share} waits no longer; what it has found is in its rows."
                )
            if self.parent not in (None, os.getppid()):
                raise RuntimeError(
                    "The process that started this one has ended; what it has found is in its rows."
                )
            if time.monotonic() >= due:
                numbers = ", ".join(map(str, missing))
                log.log(
                    level,
                    "Process %d is done and waits for number %s of %d",
                    self.share,
                    numbers,
                    self.shares,
                )
                level, due = logging.WARNING, due + _PATIENCE
            time.sleep(_PAUSE)

    def _put_together(self, loggers: Sequence[Any], key: str, step: int) -> list[AnalysisResult]:
        self._clear_markers()
        results: list[AnalysisResult] = []
        for analysis in self.analyses:
            analysis.merge()
            results.append(analysis.compute())
            if self.folder is not None:
                _report(
                    results[-1],
                    self.folder / analysis.name,
                    loggers,
                    f"{key}/{analysis.name}",
                    step,
                )
        return results

    def _marker(self, share: int, end: _End) -> Path:
        assert self.folder is not None  # of several processes
        return self.folder / f"process-{share}.{end}"

    def _leave_marker(self, end: _End) -> None:
        marker = self._marker(self.share, end)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()

    def _failed(self) -> list[int]:
        return [share for share in range(self.shares) if self._marker(share, "failed").exists()]

    def _clear_markers(self) -> None:
        if self.folder is not None:
            for marker in self.folder.glob("process-*.*"):
                if marker.suffix in (".done", ".failed"):
                    marker.unlink()


def check_names(analyses: Sequence[Analysis]) -> None:
    """Refuse analyses whose files would be the same.

    Raises:
        ConfigError: There is none, or two have one name.
    """
    names = [analysis.name for analysis in analyses]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"An analysis is needed, and of several each with a name of its own; found {', '.join(names) or 'none'}. "
            "An analysis' label is a name of your own."
        )


def _copy(earlier: Path, folder: Path) -> None:
    if not (earlier / MANIFEST).is_file():
        raise ConfigError(
            f"There is nothing to go on from: {earlier} holds no rows of an analysis. Name the folder of the run that "
            "was stopped, of the same analysis, split and training checkpoint."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _RESUMED:
        for path in earlier.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _report(
    result: AnalysisResult, folder: Path, loggers: Sequence[Any], key: str, step: int
) -> None:
    """Write `summary.csv`, `settings.json` and a PNG per plot beside the rows, and log table and pictures."""
    columns, rows = result.table()
    write_rows(folder / "summary.csv", columns, rows)
    write_json(
        folder / "settings.json",
        {"name": result.name, "n_samples": result.n_samples, **result.settings},
    )
    log_table(loggers, f"{key}/summary", columns, rows, step)
    for path in draw_plots(result, folder):
        log_image(loggers, f"{key}/{path.stem}", path, step)
