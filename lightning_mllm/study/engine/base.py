"""What the kinds of studies have in common: a name, a folder, and cells, each of which is one run of `lightning`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lightning_mllm.errors import ConfigError
from lightning_mllm.tracking.loggers import WandbMode

_NAME = re.compile(r"[A-Za-z0-9_-]+")  # no dot: it separates the names in a cell's id


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
    def likeness(self) -> tuple[tuple[object, ...], ...]:
        """What cells share that take about as long: those that are the most alike first."""

    @property
    @abstractmethod
    def order(self) -> tuple[str | int, ...]:
        """By which cells are sorted, to be dealt to machines: each gets some of each kind."""

    @property
    def note(self) -> str:
        """What the plan says beside the id."""
        return ""

    @property
    def weights(self) -> tuple[str, ...]:
        """Where its weights come from: hub ids, folders and files."""
        return (self.source,)

    @property
    def analyzes(self) -> bool:
        """Whether it is a `lightning analyze`, which goes on from a folder that it is told, not from a checkpoint."""
        return False

    @abstractmethod
    def arguments(self) -> list[str]:
        """Return the command line that decides the cell's results; where they go is no part of it."""


CellT = TypeVar("CellT", bound=BaseCell)


@dataclass(frozen=True, kw_only=True)
class BaseStudy:
    """A study.

    Attributes:
        name: Of the study: of its folder and of its W&B group.
        root: Folder of all studies.
        wandb: Mode of the cells and of the summary.
        project: W&B project.
    """

    name: str
    root: str = "studies"
    wandb: WandbMode = "auto"
    project: str = "lightning-mllm"

    @property
    def folder(self) -> Path:
        """Where everything of this study goes."""
        return Path(self.root) / self.name


def check_names(option: str, names: Iterable[str]) -> None:
    """Refuse names that can't be parts of a cell's id.

    Raises:
        ConfigError: There is none, one is no plain name, or one is there twice.
    """
    names = list(names)
    if not names:
        raise ConfigError(f"{option} is empty, so the study has no cell. Give it at least one entry.")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{option} has the name {name!r}. It becomes part of folder names: use letters, digits, _ and - only."
            )
    folded = [name.lower() for name in names]
    for name in names:
        if folded.count(name.lower()) > 1:
            raise ConfigError(f"{option} has {name!r} twice (case is no matter: names become folders). Rename one.")


def check_files(option: str, files: Iterable[str]) -> None:
    """Refuse config files that are not there.

    Raises:
        ConfigError: One is missing.
    """
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(
                f"{option} names the config file {file}, which does not exist. Paths count from the folder in which "
                f"the study is started, here {Path.cwd()}."
            )
