"""The projection study: a grid of normal runs, and what comes out of it."""

from lightning_mllm.study.command import StudyCommand, run_study
from lightning_mllm.study.config import RateSweep, Richness, Study

__all__ = ["RateSweep", "Richness", "Study", "StudyCommand", "run_study"]
