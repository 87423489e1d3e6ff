"""Analyses of one model on one split, from the first batch to the files that they leave behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_mllm.analysis.base import Analysis, AnalysisResult
from lightning_mllm.errors import ConfigError
from lightning_mllm.tracking.analysis_figures import draw_plots
from lightning_mllm.tracking.files import write_json, write_rows
from lightning_mllm.tracking.log import log_image, log_table

_RESUMED = ("rows*.csv", "making.json")


@dataclass(frozen=True)
class AnalysisRun:
    """What all processes of a run do together: `begin`, then `update` of each analysis per batch, then `finish`.

    Attributes:
        analyses: What is done.
        folder: Each gets a folder of its name in it; None for a trial that leaves nothing behind.
        source: Which model and data these are.
        share: Number of this process.
        shares: How many processes there are.
        barrier: Waits for all processes.

    Raises:
        ConfigError: Several processes have no folder in which to put their rows together.
    """

    analyses: Sequence[Analysis]
    folder: Path | None
    source: Mapping[str, Any]
    share: int
    shares: int
    barrier: Callable[[], Any]

    def __post_init__(self) -> None:
        if self.folder is None and self.shares > 1:
            raise ConfigError(
                f"{self.shares} processes put what they find together in the run's folder, and a run without a logger "
                "has none. Leave trainer.logger alone, or use one device."
            )

    def begin(self, tokenizer: PreTrainedTokenizerBase, earlier: Path | None = None) -> None:
        """Get ready for the first batch.

        Args:
            tokenizer: The model's.
            earlier: Such a folder of a run that was stopped: what it has finished is copied.

        Raises:
            ConfigError: The earlier run has no such analysis, or made it otherwise.
        """
        if earlier is not None and self.folder is not None and self.share == 0:
            for analysis in self.analyses:
                _copy(earlier / analysis.name, self.folder / analysis.name)
        self.barrier()
        for analysis in self.analyses:
            folder = None if self.folder is None else self.folder / analysis.name
            analysis.prepare(tokenizer, folder, self.source, self.share)

    def finish(self, loggers: Sequence[Any], key: str, step: int) -> list[AnalysisResult]:
        """Put together what all processes have found; the first one writes it down and returns it.

        Args:
            loggers: Of the run.
            key: What the results are called there.
            step: Optimiser steps of the run.
        """
        self.barrier()
        results: list[AnalysisResult] = []
        for analysis in self.analyses if self.share == 0 else ():
            analysis.merge()
            results.append(analysis.compute())
            if self.folder is not None:
                _report(results[-1], self.folder / analysis.name, loggers, f"{key}/{analysis.name}", step)
        self.barrier()
        return results


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
    if not (earlier / "making.json").is_file():
        raise ConfigError(
            f"There is nothing to go on from: {earlier} holds no rows of an analysis. Name the folder of the run that "
            "was stopped, of the same analysis, split and training checkpoint."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in _RESUMED:
        for path in earlier.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _report(result: AnalysisResult, folder: Path, loggers: Sequence[Any], key: str, step: int) -> None:
    """Write `summary.csv`, `settings.json` and a PNG per plot beside the rows, and log table and pictures."""
    columns, rows = result.table()
    write_rows(folder / "summary.csv", columns, rows)
    write_json(folder / "settings.json", {"name": result.name, "n_samples": result.n_samples, **result.settings})
    log_table(loggers, f"{key}/summary", columns, rows, step)
    for path in draw_plots(result, folder):
        log_image(loggers, f"{key}/{path.stem}", path, step)
