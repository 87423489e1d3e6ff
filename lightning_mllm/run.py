"""Where the files of a run go, what it is called, and that all processes agree on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from lightning_mllm.errors import ConfigError
from lightning_mllm.tracking.figures import FigureKind
from lightning_mllm.tracking.loggers import WandbMode


@dataclass(frozen=True)
class Run:
    """Where the files of a run go and what it is called.

    Attributes:
        name: Name of the run and of its folder. A folder that exists is never touched: the next run
            is `<name>-2`.
        root: The folder in which all runs have theirs.
        group: The W&B group that the run belongs to.
        tags: The tags of the run in W&B.
        project: The W&B project that the run belongs to.
        figures: Kind of file of the figures: `png`, or `svg` or `pdf` for papers, beside a PNG.
        wandb: Where W&B logs to: `auto` is online where a key is set up, else offline.
    """

    name: str = "run"
    root: str = "runs"
    group: str | None = None
    tags: Sequence[str] = ()
    project: str = "lightning-mllm"
    figures: FigureKind = "png"
    wandb: WandbMode = "auto"

    def make_folder(self) -> Path:
        """Make the run's folder and return it.

        Only the first process makes one; the others learn later which it is.

        Raises:
            ConfigError: The name is not a plain folder name, or the root can't be written.
        """
        if self.name in ("", "..") or self.name != Path(self.name).name:
            raise ConfigError(
                f"trainer.run.name must be a plain name without slashes, not {self.name!r}."
            )
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]  # set by lightning
            return Path(self.root, self.name)
        number = 1
        while True:
            name = self.name if number == 1 else f"{self.name}-{number}"
            folder = Path(self.root, name)
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                number += 1
            except OSError as error:
                raise ConfigError(
                    f"The run's folder {folder} can't be made: {error}. Set trainer.run.root."
                ) from error
            else:
                return folder


class RunFolder(L.Callback):
    """Tells all processes which folder the first one has made, before it is used."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Use the first process' folder."""
        folder: str = trainer.strategy.broadcast(trainer.default_root_dir)
        trainer._default_root_dir = folder  # type: ignore[attr-defined]  # of Lightning's Trainer
