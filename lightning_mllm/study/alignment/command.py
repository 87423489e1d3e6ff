"""The alignment study as `lightning study` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_mllm.study.alignment.report import write_report
from lightning_mllm.study.alignment.scores import curves_of_cell, scores_of_cell
from lightning_mllm.study.alignment.study import ALIGNMENT, AlignmentStudy, MeasureFolder
from lightning_mllm.study.engine.runnable import RunnableStudy


@dataclass(frozen=True, kw_only=True)
class AlignmentCommand(AlignmentStudy, RunnableStudy):
    """The alignment study, and what of it is done now."""

    tables: ClassVar[tuple[str, ...]] = ("scores", "correlations", "verdict")

    def check_cell(self, folder: MeasureFolder) -> None:
        """Refuse a cell that lacks what the study reads."""
        scores_of_cell(self, folder)
        if folder.cell.measure == ALIGNMENT:
            curves_of_cell(self, folder)

    def write_report(self, folders: Sequence[MeasureFolder]) -> Path | None:
        """Write scores, correlations, verdicts, figures and the report."""
        return write_report(self, folders)
