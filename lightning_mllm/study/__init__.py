"""Studies: grids of normal runs, and what comes out of them."""

from lightning_mllm.study.alignment import AlignmentCommand
from lightning_mllm.study.alignment_config import AlignmentStudy, Checkpoint
from lightning_mllm.study.command import run_study
from lightning_mllm.study.config import RateSweep, Richness, Study
from lightning_mllm.study.kinds import study_class
from lightning_mllm.study.projection import StudyCommand
from lightning_mllm.study.runnable import RunnableStudy

__all__ = [
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
