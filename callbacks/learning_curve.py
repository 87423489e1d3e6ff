"""Draws how the run went."""

from __future__ import annotations

import lightning as L

from lightning_mllm.callbacks import access
from lightning_mllm.tracking.figures import learning_curve
from lightning_mllm.tracking.log import log_image


class LearningCurve(L.Callback):
    """Draws `learning_curve.png` from `metrics.csv` when training ends, and again when a test adds its points."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the curves."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        folder = access.run_dir(trainer)
        if not (folder / "metrics.csv").is_file():
            return
        labels = access.label_set(trainer)
        classes = len(labels) if labels is not None else None
        picture = learning_curve(folder / "metrics.csv", folder / "learning_curve.png", classes=classes)
        log_image(trainer.loggers, "learning_curve", picture, trainer.global_step)

    on_test_end = on_fit_end
