"""When a fit writes checkpoints: whatever ends it, it can go on from its last step."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_mllm.callbacks.best_metric import BestMetric
from lightning_mllm.callbacks.step_guard import StepGuard
from lightning_mllm.callbacks.trainer_state import (
    check_trainer_validates,
    trainer_is_trial,
    trainer_run_dir,
)
from lightning_mllm.errors import NotFiniteError, UserError
from lightning_mllm.models.shards import find_shards
from lightning_mllm.progress import console
from lightning_mllm.store.files import replacing_file

_BEST = "best.ckpt"

logger = logging.getLogger(__name__)


class Checkpointing(ModelCheckpoint):
    """Writes `last.ckpt` every few steps, at the end of each epoch, and where a fit is stopped.

    It is stopped by Ctrl-C, by SIGTERM, or by an error; `lightning fit --resume <folder of the
    run>` then goes on as if nothing had happened. A model that has diverged replaces no checkpoint.
    Processes that share one model (`fsdp2`) write together: an error of one of them leaves the last
    checkpoint that was due.

    Args:
        best: Metric of the validation, e.g. `val/loss` or `val/generation/accuracy`: the model with
            its best value so far is kept as `best.ckpt`. Of a loss the lowest is the best, of an
            accuracy or F1 the highest; for another metric write `<name>:min` or `<name>:max`.
        options: Options of Lightning's ModelCheckpoint.
    """

    def __init__(self, *, best: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.best = None if best is None else BestMetric.of(best)
        self._guard = StepGuard()
        self._writes_moment = False  # while a checkpoint is of the guard's moment, not of now

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder.

        Raises:
            ConfigError: The best checkpoint is wanted of a fit without validation.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.best is not None:
            check_trainer_validates(trainer, "checkpointing.best")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer Ctrl-C; take over the best checkpoint of a run that goes on."""
        super().on_train_start(trainer, pl_module)
        shards = find_shards(pl_module)
        self._guard.start(None if shards is None else shards.count_most)
        if self.best is not None and self.best.value is not None and trainer.ckpt_path is not None:
            self._take_over_best(trainer, self.best)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if Ctrl-C was pressed during the step before."""
        self._guard.let_go()

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Let Ctrl-C wait for the end of the step."""
        self._guard.begin_update()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Remember the step; write it if it is one of every few."""
        self._guard.end_update(trainer)
        with self._writing_moment():
            super().on_train_batch_end(trainer, pl_module, *args, **kwargs)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop here if Ctrl-C was pressed during the step before."""
        self._guard.let_go()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the best model so far.

        Raises:
            ConfigError: The validation has no metric of the name that decides.
        """
        super().on_validation_end(trainer, pl_module)
        if self.best is None or trainer.state.fn != "fit":
            return
        value = self.best.value_in(trainer.callback_metrics)
        if trainer.sanity_checking or trainer_is_trial(trainer):
            return
        if self.best.take(value, trainer.global_step):
            assert self.dirpath is not None  # since `setup`
            trainer.save_checkpoint(Path(self.dirpath, _BEST))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last step; in an epoch that ends early, so that its rest can still come."""
        self._guard.let_go()
        super().on_train_epoch_end(trainer, pl_module)
        written = self.every_n_epochs and self._last_global_step_saved == trainer.global_step
        if written or trainer_is_trial(trainer):
            return
        whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        with nullcontext() if whole else self._writing_moment():
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave Ctrl-C alone again."""
        self._guard.stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the checkpoints of a run that goes on with nothing left to train."""
        if trainer.ckpt_path is None or not self.save_last or trainer_is_trial(trainer):
            return
        assert self.dirpath is not None  # since `setup`
        target = Path(self.dirpath, "last.ckpt")
        if self.last_model_path or target.exists():  # it has taken steps
            return
        self.last_model_path, self._last_global_step_saved = str(target), trainer.global_step
        if trainer.is_global_zero:
            _take_over(Path(trainer.ckpt_path), target)
        if self.best is not None and self.best.value is not None:
            self._take_over_best(trainer, self.best)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the checkpoint be that of the last step's end, where it is not written there."""
        if self._writes_moment:
            checkpoint.update(self._guard.moment or {})

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write the last whole step, and say how to go on from it, also from a test after a fit."""
        self._guard.stop()
        if trainer_is_trial(trainer) or not self.save_last:
            return
        is_whole = self._guard.is_whole and not isinstance(exception, NotFiniteError)
        if is_whole and self._guard.can_write and trainer.state.fn == "fit":
            self._write_stopped(trainer)
        folder = trainer_run_dir(trainer)
        is_there = (folder / "checkpoints" / "last.ckpt").is_file()
        if trainer.is_global_zero and is_there:
            how = f"lightning fit --resume {folder}"
            if not (folder / "config.yaml").is_file():  # a script's
                how = f'trainer.fit(..., ckpt_path="{folder}/checkpoints/last.ckpt")'
            text = f"To go on from step {self._last_global_step_saved}: {how}"
            console.print(text, markup=False, soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's own state, and the best value so far."""
        best = self.best and {
            "name": self.best.name,
            "value": self.best.value,
            "step": self.best.step,
        }
        return {**super().state_dict(), "best": best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best value of the run that goes on, if it is of the same metric."""
        super().load_state_dict(state_dict)
        found = state_dict.get("best")
        if self.best is not None and found and found["name"] == self.best.name:
            self.best.value, self.best.step = found["value"], found["step"]

    @contextmanager
    def _writing_moment(self) -> Iterator[None]:
        """Let checkpoints be of the end of the last step."""
        self._writes_moment = True
        try:
            yield
        finally:
            self._writes_moment = False

    def _write_stopped(self, trainer: L.Trainer) -> None:
        """Write the guard's moment, unless that step is written; other processes may be gone."""
        if self._last_global_step_saved == trainer.global_step:
            return
        assert self.dirpath is not None  # since `setup`
        self.last_model_path = self.last_model_path or str(Path(self.dirpath, "last.ckpt"))
        try:  # not `trainer.save_checkpoint`, which waits for the other processes
            with self._writing_moment():
                content = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
                trainer.strategy.save_checkpoint(content, self.last_model_path)
            self._last_global_step_saved = trainer.global_step
        except UserError as error:  # the reason for the stop is what the user must read
            logger.warning("Step %d is not saved. %s", trainer.global_step, error)

    def _take_over_best(self, trainer: L.Trainer, best: BestMetric) -> None:
        """Put the best checkpoint of the run that goes on into this run's folder, too."""
        assert self.dirpath is not None and trainer.ckpt_path is not None  # as the caller knows
        source, target = Path(trainer.ckpt_path).with_name(_BEST), Path(self.dirpath, _BEST)
        if not source.is_file() or _step_of(source) != best.step:
            best.value = None
            logger.warning(
                "%s is not that of step %d, so the best checkpoint is chosen anew from here on.",
                source,
                best.step,
            )
        elif trainer.is_global_zero and not target.exists():
            _take_over(source, target)


def _take_over(source: Path, target: Path) -> None:
    with replacing_file(target) as temporary:
        try:
            os.link(source, temporary)  # checkpoints are replaced, never changed
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(source, temporary)


def _step_of(checkpoint: Path) -> int:
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return int(content["global_step"])
