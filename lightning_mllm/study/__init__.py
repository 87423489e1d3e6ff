"""Studies: grids of normal runs, and what comes out of them."""

from collections.abc import Sequence

from lightning_mllm.study.alignment.command import AlignmentCommand
from lightning_mllm.study.alignment.study import AlignmentStudy, AlignmentStudyCheckpoint
from lightning_mllm.study.engine.choice import choose_study
from lightning_mllm.study.engine.main import run_study
from lightning_mllm.study.engine.runnable import RunnableStudy
from lightning_mllm.study.projection.command import ProjectionCommand
from lightning_mllm.study.projection.study import (
    ProjectionStudy,
    ProjectionStudyRates,
    ProjectionStudyRichness,
)

KINDS: dict[str, type[RunnableStudy]] = {
    "projection": ProjectionCommand,
    "alignment": AlignmentCommand,
}

__all__ = [
    "KINDS",
    "AlignmentCommand",
    "AlignmentStudy",
    "AlignmentStudyCheckpoint",
    "ProjectionCommand",
    "ProjectionStudy",
    "ProjectionStudyRates",
    "ProjectionStudyRichness",
    "RunnableStudy",
    "run_study",
    "study_class",
]


def study_class(arguments: Sequence[str]) -> type[RunnableStudy]:
    """Return the class of the study that a command line describes; see `choose_study`."""
    return choose_study(arguments, KINDS)
