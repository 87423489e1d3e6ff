"""The projection study as `lightning study` runs it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_mllm.study.engine.outputs import describe_output_number
from lightning_mllm.study.projection.cell_files import check_cell_files, scores_in_cell_files
from lightning_mllm.study.projection.cells import ProjectionCell, ProjectionFolder, projection_cells
from lightning_mllm.study.projection.report import write_projection_report
from lightning_mllm.study.projection.study import ProjectionStudy


@dataclass(frozen=True, kw_only=True)
class ProjectionCommand(ProjectionStudy):
    """The projection study, and which part of it runs now."""

    tables: ClassVar[tuple[str, ...]] = ("table1", "table2", "verdict")

    def all_cells(self) -> list[ProjectionCell]:
        """Return the grid."""
        return projection_cells(self)

    def check_cell(self, folder: ProjectionFolder) -> None:
        """Refuse a cell that lacks what the study reads."""
        check_cell_files(self, folder)

    def write_report(self, folders: Sequence[ProjectionFolder]) -> Path | None:
        """Write tables, verdicts, figures and the report."""
        return write_projection_report(self, folders)

    def main_number(self, folder: ProjectionFolder) -> str:
        """Return the accuracy of the model's answers."""
        scores = scores_in_cell_files(folder)[self.scorer]
        low, high = scores.get("accuracy_interval_95", (None, None))
        return describe_output_number("accuracy", scores["accuracy"], low, high)

    def tidy(self, folder: ProjectionFolder) -> None:
        """Remove the checkpoints, unless they stay."""
        if not self.keep_checkpoints:
            for run in folder.runs():
                shutil.rmtree(run / "checkpoints", ignore_errors=True)
