"""Studies: grids of normal runs, and what comes out of them."""

from collections.abc import Sequence

from lightning_mllm.study.alignment.command import AlignmentCommand
from lightning_mllm.study.alignment.study import AlignmentStudy, Checkpoint
from lightning_mllm.study.engine.main import run_study
from lightning_mllm.study.engine.registry import choose_study
from lightning_mllm.study.engine.runnable import RunnableStudy
from lightning_mllm.study.projection.command import StudyCommand
from lightning_mllm.study.projection.study import RateSweep, Richness, Study

KINDS: dict[str, type[RunnableStudy]] = {"projection": StudyCommand, "alignment": AlignmentCommand}

__all__ = [
    "KINDS",
    "AlignmentCommand",
    "AlignmentStudy",
    "Checkpoint",
    "RateSweep",
    "Richness",
    "RunnableStudy",
    "Study",
    "StudyCommand",
    "run_study",
    "study_class",
]


def study_class(arguments: Sequence[str]) -> type[RunnableStudy]:
    """Return the class of the study that a command line describes; see `choose_study`."""
    return choose_study(arguments, KINDS)
