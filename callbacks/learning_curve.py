"""Draws loss and scores over the steps of a run."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from lightning_mllm.callbacks.trainer_state import (
    trainer_figure,
    trainer_label_set,
    trainer_mllm,
    trainer_run_dir,
)
from lightning_mllm.tracking.figures.run import draw_learning_curve_of_run
from lightning_mllm.tracking.loggers import log_image

_NAME = "learning_curve"


class LearningCurve(L.Callback):
    """Draws `learning_curve.png` from `metrics.csv` after a fit, and again after a test."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the curves."""
        if trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the curves again with the points of the test, if there are any curves."""
        if trainer.is_global_zero and _find_picture(trainer).is_file():
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.save()
        folder = trainer_run_dir(trainer)
        if not (folder / "metrics.csv").is_file():
            return
        labels = trainer_label_set(trainer)
        classes = None if labels is None else len(labels)
        picture = draw_learning_curve_of_run(
            folder / "metrics.csv", _find_picture(trainer), classes=classes
        )
        step = trainer_mllm(pl_module).trained_steps
        log_image(trainer.loggers, _NAME, picture, step)


def _find_picture(trainer: L.Trainer) -> Path:
    return trainer_figure(trainer, trainer_run_dir(trainer), _NAME)
