"""What a kind of study gives to `lightning study`: which cells there are, what each must leave behind, and a report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_mllm.study.engine.base import BaseCell, BaseStudy
from lightning_mllm.study.engine.cell_folder import AnyFolder


@dataclass(frozen=True, kw_only=True)
class RunnableStudy(BaseStudy, ABC):
    """A study, and what of it is done now.

    Attributes:
        cells: Which part of how many, e.g. 3/8 on the third of eight machines. In a SLURM array from 1 on:
            `--cells $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT`.
        jobs: How many cells run side by side, in a process each, with an equal share of the CPU cores.
        dry_run: Only show the plan.
        tables: Names of the CSV files that the summary of the finished study shows.
    """

    cells: str = "1/1"
    jobs: int = 1
    dry_run: bool = False
    tables: ClassVar[tuple[str, ...]]

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
        """Write the results of the finished cells, and return the report; None while none is finished.

        Args:
            folders: All cells.

        Raises:
            DataError: A file of a finished cell is missing, or can't be read.
        """

    def tidy(self, folder: AnyFolder) -> None:
        """Remove what is not to stay of a finished cell."""
