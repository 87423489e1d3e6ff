"""Analyses of one model on one split, from the first batch to their files and logs."""

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
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation import KnownAnswers
from lightning_mllm.progress import show_progress
from lightning_mllm.store.files import write_csv_file, write_json
from lightning_mllm.store.manifest import MANIFEST
from lightning_mllm.store.sample_maps import MAPS
from lightning_mllm.tracking.figures import FigureKind
from lightning_mllm.tracking.figures.analysis import draw_analysis_plots
from lightning_mllm.tracking.figures.patches import FindPatches, draw_patch_pictures
from lightning_mllm.tracking.loggers import log_image, log_table

_End = Literal["done", "failed"]  # how a process ended

_RESUMED = ("rows*.csv", "*.safetensors", f"{MAPS}/*.safetensors", MANIFEST)
_PAUSE = 1.0  # seconds between looks at how far the other processes are
_PATIENCE = 600.0  # seconds between messages about which processes are missing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnalysisRun:
    """Analyses that all processes of a run do together.

    Call `begin`, then `update` for every batch, `settle` after the last, then `finish`.

    Attributes:
        analyses: The analyses.
        folder: Each analysis gets a folder of its name in it; None for a trial that writes nothing.
        rank: Number of this process.
        world_size: Number of processes.
        barrier: Waits for all processes.
        parent: Id of the process that has started this one; None if a person has.
        figures: Kind of file of the figures.

    Raises:
        ConfigError: There are several processes, and no folder for what they find.
    """

    analyses: Sequence[Analysis]
    folder: Path | None
    rank: int
    world_size: int
    barrier: Callable[[], Any]
    parent: int | None = None
    figures: FigureKind = "png"

    def __post_init__(self) -> None:
        if self.folder is None and self.world_size > 1:
            raise ConfigError(
                f"{self.world_size} processes collect what they find in the run's folder, and a "
                "run without a logger has none. Leave trainer.logger at its default, or use one "
                "device."
            )

    @classmethod
    def of(cls, analyses: Sequence[Analysis], trainer: Any, where: str) -> AnalysisRun:
        """Return the run of a Trainer's processes.

        Args:
            analyses: The analyses.
            trainer: Lightning's Trainer.
            where: Folder below that of the run. A trial with `fast_dev_run` has none.
        """
        return cls(
            analyses,
            folder=Path(trainer.default_root_dir, where) if trainer.loggers else None,
            rank=trainer.global_rank,
            world_size=1 if trainer.fast_dev_run else trainer.world_size,
            barrier=trainer.strategy.barrier,
            parent=os.getppid() if trainer.local_rank else None,
            figures=getattr(trainer, "figures", "png"),  # Lightning's own Trainer has none
        )

    def check_model(self, module: Any) -> None:
        """Refuse a model that one of the analyses can't look at.

        Raises:
            ConfigError: There is one.
        """
        with module.adapted.autocast(module.device.type):
            for analysis in self.analyses:
                analysis.check_model(module.backbone)

    def begin(
        self,
        tokenizer: PreTrainedTokenizerBase,
        source: Mapping[str, Any],
        earlier: Path | None = None,
    ) -> None:
        """Get ready for the first batch.

        Args:
            tokenizer: The tokenizer of the model.
            source: Which model and data these are.
            earlier: Such a folder of a run that was stopped; what it has finished is copied.

        Raises:
            ConfigError: The earlier run has no such analysis, or it had different settings.
        """
        if self.rank == 0:
            if earlier is not None and self.folder is not None:
                for analysis in self.analyses:
                    _copy_finished(earlier / analysis.name, self.folder / analysis.name)
            self._clear_markers()  # of a run in this folder that was killed
        self.barrier()
        answers = KnownAnswers()
        for analysis in self.analyses:
            folder = None if self.folder is None else self.folder / analysis.name
            analysis.prepare(tokenizer, folder, source, self.rank, answers)

    def update(self, module: Any, batch: MultimodalBatch) -> None:
        """Take a batch, which is on the device of the module, into each analysis."""
        with module.adapted.autocast(module.device.type):
            for analysis in self.analyses:
                analysis.update(module.backbone, batch)

    def settle(self, module: Any) -> None:
        """Let each analysis do what needs all batches, after the last; it may run the model."""
        with module.adapted.autocast(module.device.type):
            for analysis in self.analyses:
                analysis.settle()

    def finish(
        self, loggers: Sequence[Any], key: str, step: int, patches: FindPatches | None = None
    ) -> list[AnalysisResult]:
        """Merge what all processes have found; the first process writes and returns the results.

        Args:
            loggers: The loggers of the run.
            key: Prefix of the results' names in the loggers.
            step: Optimiser steps of the run.
            patches: Finds the picture of a sample and the places of its patches; without it nothing
                is drawn on pictures.
        """
        self._wait_for_all()
        self.barrier()
        try:
            return self._merge(loggers, key, step, patches) if self.rank == 0 else []
        finally:
            self.barrier()  # the others wait here, whatever went wrong

    def fail(self) -> None:
        """Tell the other processes that this one ends with an error, unless one failed first."""
        if self.folder is not None and self.world_size > 1 and not self._with_marker("failed"):
            self._leave_marker("failed")

    def _wait_for_all(self) -> None:
        """Wait until all processes have their rows, and say now and then which are missing.

        One process can be done hours before another, and a barrier, like all collective
        operations, fails after minutes. So each process leaves a marker in the folder and looks for
        those of the others.

        Raises:
            RuntimeError: Another process has failed, or the one that has started this one has
                ended, so that waiting is useless.
        """
        if self.folder is None:
            return
        self._leave_marker("done")
        level, due = logging.INFO, time.monotonic()
        while missing := {*range(self.world_size)} - self._with_marker("done"):
            if failed := self._with_marker("failed"):
                raise RuntimeError(
                    f"Process {min(failed)} of {self.world_size} has ended with an error, which "
                    f"its own output shows, so process {self.rank} waits no longer; what it has "
                    "found is in its rows."
                )
            if self.parent not in (None, os.getppid()):
                raise RuntimeError(
                    "The process that started this one has ended; what it has found is in its rows."
                )
            if time.monotonic() >= due:
                numbers = ", ".join(map(str, sorted(missing)))
                logger.log(
                    level,
                    "Process %d of %d is done and waits for %s",
                    self.rank,
                    self.world_size,
                    numbers,
                )
                level, due = logging.WARNING, due + _PATIENCE
            time.sleep(_PAUSE)

    def _merge(
        self, loggers: Sequence[Any], key: str, step: int, patches: FindPatches | None
    ) -> list[AnalysisResult]:
        self._clear_markers()
        results: list[AnalysisResult] = []
        with show_progress("Results", len(self.analyses)) as bar:
            for analysis in self.analyses:
                bar.rename(f"{analysis.name}: merging rows")
                analysis.merge()
                bar.rename(f"{analysis.name}: numbers and intervals")
                results.append(analysis.compute())
                if self.folder is not None:
                    bar.rename(f"{analysis.name}: files and figures")
                    folder, name = self.folder / analysis.name, f"{key}/{analysis.name}"
                    _report(results[-1], folder, loggers, name, step, self.figures)
                    for path in draw_patch_pictures(results[-1], folder, patches, self.figures):
                        log_image(loggers, f"{name}/{path.stem}", path, step)
                bar.advance()
        return results

    def _marker(self, rank: int, end: _End) -> Path:
        assert self.folder is not None  # of several processes
        return self.folder / f"process-{rank}.{end}"

    def _leave_marker(self, end: _End) -> None:
        marker = self._marker(self.rank, end)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()

    def _with_marker(self, end: _End) -> set[int]:
        return {rank for rank in range(self.world_size) if self._marker(rank, end).exists()}

    def _clear_markers(self) -> None:
        if self.folder is not None:
            for marker in self.folder.glob("process-*.*"):
                if marker.suffix in (".done", ".failed"):
                    marker.unlink()


def check_analysis_run_names(analyses: Sequence[Analysis]) -> None:
    """Refuse analyses whose files would be the same.

    Raises:
        ConfigError: There is no analysis, or two have the same name.
    """
    names = [analysis.name for analysis in analyses]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            "Expected one analysis or more, each with a name of its own; found "
            f"{', '.join(names) or 'none'}. Set the option label of an analysis to name it."
        )


def _copy_finished(earlier: Path, folder: Path) -> None:
    if not (earlier / MANIFEST).is_file():
        raise ConfigError(
            f"There is nothing to continue: {earlier} holds no rows of an analysis. Name the "
            "folder of the run that was stopped, with the same analysis, split and training "
            "checkpoint."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _RESUMED:
        for path in earlier.glob(pattern):
            copy = folder / path.relative_to(earlier)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)


def _report(  # noqa: PLR0917 - all of them belong to one result
    result: AnalysisResult,
    folder: Path,
    loggers: Sequence[Any],
    key: str,
    step: int,
    figures: FigureKind,
) -> None:
    """Write and log a result: `summary.csv`, `settings.json`, and a figure per plot."""
    columns, rows = result.table()
    write_csv_file(folder / "summary.csv", columns, rows)
    settings = {"name": result.name, "n_samples": result.n_samples, **result.settings}
    write_json(folder / "settings.json", settings)
    log_table(loggers, f"{key}/summary", columns, rows, step)
    for path in draw_analysis_plots(result, folder, figures):
        log_image(loggers, f"{key}/{path.stem}", path, step)
