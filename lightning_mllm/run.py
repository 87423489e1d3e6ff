"""Where the files of a run go, what it is called, and that all processes agree on it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_mllm.errors import ConfigError
from lightning_mllm.run_status import RunStatus
from lightning_mllm.tracking.figures import FigureKind
from lightning_mllm.tracking.loggers import make_loggers
from lightning_mllm.tracking.metrics_file import MetricsFile
from lightning_mllm.tracking.wandb_mode import WandbMode

logger = logging.getLogger(__name__)


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

    def make_loggers(self, folder: Path) -> list[Logger]:
        """Return the loggers of the run whose folder this is."""
        return make_loggers(
            folder,
            name=folder.name,
            group=self.group,
            tags=self.tags,
            mode=self.wandb,
            project=self.project,
        )


class RunFolder(L.Callback):
    """Keeps the run's folder: all processes use one, and a run that goes on has earlier rows, too.

    Args:
        status: What the folder says of the run.
    """

    def __init__(self, status: RunStatus) -> None:
        self.status = status
        self._metrics: MetricsFile | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Use the first process' folder."""
        folder: str = trainer.strategy.broadcast(trainer.default_root_dir)
        trainer._default_root_dir = folder  # type: ignore[attr-defined]  # of Lightning's Trainer
        found = (each for each in trainer.loggers if isinstance(each, MetricsFile))
        self._metrics = next(found, None)

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows `metrics.csv` has."""
        return {} if self._metrics is None else {"rows": self._metrics.count}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the rows that belong to the checkpoint."""
        if self._metrics is not None:
            self._metrics.save_with_step()
        self.status.write(step=trainer.global_step)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Begin with the rows of the run that goes on, and say which it is."""
        if trainer.state.fn != "fit" or trainer.ckpt_path is None:
            return
        source, step = Path(trainer.ckpt_path), int(checkpoint["global_step"])
        self.status.write(step=step, continues=str(source))
        if trainer.is_global_zero:
            logger.info("This run goes on from step %d of %s.", step, source)
        rows = checkpoint["callbacks"].get(self.state_key, {}).get("rows")
        if self._metrics is not None and rows is not None:
            self._metrics.begin_with(source.parent.parent, rows, step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note how far the run is."""
        self.status.write(step=trainer.global_step)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Note that the set-up is over."""
        self.status.began |= not trainer.sanity_checking

    on_validation_batch_start = on_train_batch_start
    on_test_batch_start = on_train_batch_start
    on_predict_batch_start = on_train_batch_start
