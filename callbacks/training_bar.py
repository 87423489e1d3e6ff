"""Shows how far a training or an evaluation is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

from lightning_mllm import progress
from lightning_mllm.callbacks.epoch_line import format_loss
from lightning_mllm.callbacks.trainer_state import (
    trainer_mllm,
    trainer_place,
    trainer_total_steps,
)


class TrainingBar(ProgressBar):
    """Shows one bar for all steps of a training, and below it one for each evaluation.

    The bar of the training names the epoch and the last loss that was logged. Where there is no
    terminal, a line in the log says once a minute how far it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown = True
        self._training, self._evaluation = ExitStack(), ExitStack()  # close the bars
        self._steps: progress.ProgressBar | None = None
        self._batches: progress.ProgressBar | None = None

    def disable(self) -> None:
        """Show nothing from now on."""
        self._shown = False

    def enable(self) -> None:
        """Show the bars again."""
        self._shown = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar of the training; in a resumed one the earlier steps are done."""
        if self._shown:
            bar = progress.show_progress(
                trainer_place(trainer), trainer_total_steps(trainer), trainer.global_step
            )
            self._steps = self._training.enter_context(bar)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name the epoch."""
        if self._steps is not None:
            self._steps.rename(trainer_place(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Count the step; where numbers are logged, show the loss, for which a GPU is waited."""
        if self._steps is None:
            return
        loss = trainer_mllm(pl_module).last_loss
        if loss is not None and trainer._logger_connector.should_update_logs:
            self._steps.rename(f"{trainer_place(trainer)} · loss {format_loss(float(loss))}")
        self._steps.advance(trainer.global_step - self._steps.done)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar of the training away."""
        self._close(self._training)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar of a validation."""
        if trainer.sanity_checking:
            self._open("trying a validation", trainer.num_sanity_val_batches)
        else:
            self._open("validating", trainer.num_val_batches)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar of a test."""
        self._open("testing", trainer.num_test_batches)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar of a prediction."""
        self._open("predicting", trainer.num_predict_batches)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        if self._batches is not None:
            self._batches.advance()

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar of the evaluation away."""
        self._close(self._evaluation)

    on_test_end = on_predict_end = on_validation_end

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take all bars away."""
        self._close(self._evaluation)
        self._close(self._training)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Take all bars away, so that the message stands below what was printed."""
        self.teardown(trainer, pl_module, "")

    def _open(self, name: str, batches: Sequence[float]) -> None:
        if self._shown:
            total = sum(batches)
            bar = progress.show_progress(name, total if math.isfinite(total) else None)
            self._batches = self._evaluation.enter_context(bar)

    def _close(self, bars: ExitStack) -> None:
        bars.close()
        self._batches = None
        if bars is self._training:
            self._steps = None
