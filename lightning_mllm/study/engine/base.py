"""A cell: one run of `lightning`, as the engine of studies sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

TimeKeys = tuple[tuple[object, ...], tuple[object, ...]]


@dataclass(frozen=True, kw_only=True)
class BaseCell(ABC):
    """One run.

    Attributes:
        source: Hub id or folder of the checkpoint.
        configs: Config files, in the order in which they count.
    """

    source: str
    configs: tuple[str, ...]

    @property
    @abstractmethod
    def id(self) -> str:
        """Name of the cell and of its folder."""

    @property
    @abstractmethod
    def time_keys(self) -> TimeKeys:
        """Two keys, by which the plan estimates times.

        Cells that share the first take about the same time; those that share the second may.
        """

    @property
    @abstractmethod
    def order(self) -> tuple[str | int, ...]:
        """The key by which cells are sorted before they are dealt to machines."""

    @property
    def note(self) -> str:
        """What the plan says after the id."""
        return ""

    @property
    def weights(self) -> tuple[str, ...]:
        """Where its weights come from: hub ids, folders and files."""
        return (self.source,)

    @property
    def analyzes(self) -> bool:
        """Whether it is a `lightning analyze`, which resumes from a run's folder."""
        return False

    @abstractmethod
    def arguments(self) -> list[str]:
        """Return the command line that decides the cell's results, but not where they go."""

    def config_arguments(self) -> list[str]:
        """Return the part of the command line that names the config files."""
        arguments = []
        for file in self.configs:
            arguments += ["--config", file]
        return arguments


CellT = TypeVar("CellT", bound=BaseCell)
