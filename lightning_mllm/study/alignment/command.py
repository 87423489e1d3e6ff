"""The alignment study as `lightning study` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_mllm.study.alignment.cells import AlignmentCell, MeasureFolder, alignment_cells
from lightning_mllm.study.alignment.report import write_alignment_report
from lightning_mllm.study.alignment.scores import (
    check_scores_of_alignment_cell,
    scores_of_alignment_cell,
)
from lightning_mllm.study.alignment.study import AlignmentStudy
from lightning_mllm.study.engine.outputs import describe_output_number


@dataclass(frozen=True, kw_only=True)
class AlignmentCommand(AlignmentStudy):
    """The alignment study, and which part of it runs now."""

    tables: ClassVar[tuple[str, ...]] = ("scores", "correlations", "verdict")

    def all_cells(self) -> list[AlignmentCell]:
        """Return all measurements of all checkpoints."""
        return alignment_cells(self)

    def check_cell(self, folder: MeasureFolder) -> None:
        """Refuse a cell that lacks what the study reads."""
        check_scores_of_alignment_cell(self, folder)

    def main_number(self, folder: MeasureFolder) -> str:
        """Return the first score of the checkpoint."""
        score = next(scores_of_alignment_cell(self, folder))
        return describe_output_number(score.measure, score.value, score.low_95, score.high_95)

    def write_report(self, folders: Sequence[MeasureFolder]) -> Path | None:
        """Write scores, correlations, verdicts, figures and the report."""
        return write_alignment_report(self, folders)
