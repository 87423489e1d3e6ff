"""Logs so often that the training of small data has a curve, too."""

from __future__ import annotations

import lightning as L

from lightning_mllm.callbacks.trainer_state import trainer_total_steps

_POINTS = 100  # of a curve
_LONGEST = 50  # steps between two points


class LogInterval(L.Callback):
    """Sets `log_every_n_steps` so that a fit logs a hundred times, and at least every 50 steps.

    A fit of fewer than a hundred steps logs each of them. An interval that the Trainer was given
    stays.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let Lightning not warn of an interval that is longer than an epoch."""
        if stage == "fit":
            _set_log_interval(trainer, 1)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the interval; the number of steps is known now."""
        steps = trainer_total_steps(trainer)
        interval = _LONGEST if steps is None else log_interval_of(steps)
        _set_log_interval(trainer, interval)


def log_interval_of(steps: int) -> int:
    """Return every how many steps a fit of that many steps is logged."""
    return max(1, min(_LONGEST, steps // _POINTS))


def _set_log_interval(trainer: L.Trainer, steps: int) -> None:
    if not getattr(trainer, "has_log_interval", False):  # Lightning's own does not say
        trainer.log_every_n_steps = steps  # type: ignore[attr-defined]  # of Lightning's Trainer
