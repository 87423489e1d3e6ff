"""What a kind of study gives to `lightning study`: cells, what each must write, and a report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_mllm.study.engine.base import BaseCell
from lightning_mllm.study.engine.cell_folder import AnyFolder
from lightning_mllm.tracking.figures import FigureKind
from lightning_mllm.tracking.wandb_mode import WandbMode


@dataclass(frozen=True, kw_only=True)
class RunnableStudy(ABC):
    """A study: a folder with cells, and how many of them run now.

    Attributes:
        name: Name of the study, of its folder and of its W&B group.
        root: Folder that holds all studies.
        figures: Kind of file of the figures: `png`, or `svg` or `pdf` for papers, beside a PNG.
        wandb: W&B mode of the cells and of the summary.
        project: W&B project of the cells and of the summary.
        cells: Which part of the cells runs here, e.g. 3/8 on the third of eight machines. In a
            SLURM array from 1 on: `--cells $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT`.
        jobs: How many cells run at the same time, each in a process with an equal share of the CPU
            cores.
        dry_run: Show the plan and run nothing.
        tables: Names of the CSV files that the W&B summary of the finished study shows.
    """

    name: str
    root: str = "studies"
    figures: FigureKind = "png"
    wandb: WandbMode = "auto"
    project: str = "lightning-mllm"
    cells: str = "1/1"
    jobs: int = 1
    dry_run: bool = False
    tables: ClassVar[tuple[str, ...]]

    @property
    def folder(self) -> Path:
        """Where everything of this study goes."""
        return Path(self.root) / self.name

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: An option is wrong, or a file is missing.
        """

    @abstractmethod
    def all_cells(self) -> Sequence[BaseCell]:
        """Return all cells, in the order in which they run."""

    @abstractmethod
    def check_cell(self, folder: AnyFolder) -> None:
        """Refuse a cell that lacks what the study reads.

        Raises:
            DataError: A file is missing, or something is not in it.
        """

    @abstractmethod
    def write_report(self, folders: Sequence[AnyFolder]) -> Path | None:
        """Write the results of the finished cells, and return the report, or None without any.

        Args:
            folders: The folders of all cells.

        Raises:
            DataError: A file of a finished cell is missing, or can't be read.
        """

    def main_number(self, folder: AnyFolder) -> str:
        """Return what a finished cell found, in a few words; empty without a number.

        Raises:
            DataError: A file of the cell is missing, or can't be read.
        """
        return ""

    def tidy(self, folder: AnyFolder) -> None:  # noqa: B027 - most studies remove nothing
        """Remove what a finished cell does not keep."""
