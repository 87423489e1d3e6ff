"""Logs the learning rate of each step."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor

from lightning_mllm.tracking.loggers import log_metrics


class LearningRateLog(LearningRateMonitor):
    """Lightning's monitor, but a rate is logged at the step that uses it, as the loss is."""

    def __init__(self) -> None:
        super().__init__("step")

    def on_train_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Find the rates; where nothing is logged, do nothing."""
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Log the rates, as often as the loss."""
        if trainer.loggers and trainer._logger_connector.should_update_logs:
            rates = self._extract_stats(trainer, "step")
            log_metrics(trainer.loggers, rates, trainer.global_step + 1)
