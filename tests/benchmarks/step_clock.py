"""Times the steps of a Lightning or a transformers Trainer in the same way."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import transformers
from torch import Tensor, nn
from transformers import TrainerCallback

from tests.benchmarks.harness import MemoryMeter, synchronise


@dataclass(frozen=True)
class Result:
    """What one process measured.

    Attributes:
        seconds: Per step, data loading included.
        mib: Peak memory above the loaded model.
        losses: Of the first and of the last step.
        threads: Of torch.
        trainable: Number of trained weights.
    """

    seconds: float
    mib: float
    losses: tuple[float, float]
    threads: int
    trainable: int


class Clock:
    """Times the steps behind the warm-up; both trainers tell it when a step has ended."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._device, self._warmup, self._steps = options.device, options.warmup, options.steps
        self._ended = 0
        self._times: list[float] = []
        self.losses: list[Tensor] = []

    def step_ended(self, loss: Tensor) -> None:
        """Count a step and keep its loss, without waiting for it."""
        self._ended += 1
        self.losses.append(loss.detach())
        if self._ended in (self._warmup, self._warmup + self._steps):
            synchronise(self._device)
            self._times.append(time.perf_counter())

    def result(self, meter: MemoryMeter, model: nn.Module) -> Result:
        """Return what was measured."""
        started, ended = self._times
        return Result(
            seconds=(ended - started) / self._steps,
            mib=meter.peak(),
            losses=(float(self.losses[0]), float(self.losses[-1])),
            threads=torch.get_num_threads(),
            trainable=sum(
                parameter.numel() for parameter in model.parameters() if parameter.requires_grad
            ),
        )


class LightningClock(L.Callback):
    """Tells the clock of our steps."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._clock.step_ended(outputs["loss"])


class TimedHFTrainer(transformers.Trainer):
    """Keeps each step's loss, as the other side does."""

    last_loss: Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss


class HFClock(TrainerCallback):
    """Tells the clock of the steps of `trainer`, which is set once it is made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.trainer: TimedHFTrainer | None = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        self._clock.step_ended(self.trainer.last_loss)
