"""Says in a line how good the model is after each epoch, and how long the training still takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lightning_mllm import progress
from lightning_mllm.callbacks.trainer_state import (
    trainer_is_fitting,
    trainer_mllm,
    trainer_place,
    trainer_step_place,
    trainer_total_steps,
)
from lightning_mllm.evaluation import Interval
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.progress import format_duration


class EpochLine(L.Callback):
    """Prints `epoch 3/8 · train 0.41 · val 0.38 · accuracy 0.73 [0.69, 0.77] · 12 s · 1 min left`.

    The numbers are the mean loss of the training since the line before, the validation's loss, and
    its accuracy with the 95 % interval: of the first scorer, which is named once if there are
    several, or of open answers. A validation within an epoch has a line of its own, and so has each
    evaluation of a fit before its training. Time left is that of the whole training.
    """

    def __init__(self) -> None:
        self._scores: list[str] = []
        self._names_scorer = True
        self._first_step = 0
        self._began = self._line_began = time.monotonic()
        self._start_losses()

    def _start_losses(self) -> None:
        self._loss: Tensor | None = None  # a sum on the device, which is not waited for
        self._losses = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start_losses()
        self._scores, self._first_step = [], trainer.global_step
        self._began = self._line_began = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Add the loss of the step."""
        loss = trainer_mllm(pl_module).last_loss
        if loss is not None:
            self._loss = loss if self._loss is None else self._loss + loss
            self._losses += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of an evaluation before the training."""
        if trainer.state.fn != "fit":
            self._line_began = time.monotonic()

    on_test_start = on_validation_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scores for the line of the epoch, or print them if none comes soon."""
        if trainer.sanity_checking:
            return
        module = trainer_mllm(pl_module)
        self._scores = describe_scores(trainer, module)
        if trainer_is_fitting(trainer):
            if not _is_last_of_epoch(trainer):
                self._print_line(trainer, module, trainer_step_place(trainer))
        elif not module.trained_steps and getattr(trainer, "will_fit", True):
            seconds = format_duration(time.monotonic() - self._line_began)
            self._print(trainer, module, ["before", *self._scores], [seconds])

    on_test_end = on_validation_end

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line of the epoch; its validation is over."""
        self._print_line(trainer, trainer_mllm(pl_module), trainer_place(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say why a training ends early."""
        steps = trainer_total_steps(trainer)
        if steps is None or trainer.global_step >= steps or not trainer.is_global_zero:
            return
        text = f"Stopped early, after {trainer_step_place(trainer)}."
        for each in trainer.early_stopping_callbacks:
            if isinstance(each, EarlyStopping) and each.stopping_reason_message:
                text += f" {each.stopping_reason_message}"
        progress.console.print(text, markup=False)

    def _print_line(self, trainer: L.Trainer, module: MLLMModule, place: str) -> None:
        now = time.monotonic()
        times = [format_duration(now - self._line_began)]
        steps, done = trainer_total_steps(trainer), trainer.global_step - self._first_step
        if steps is not None and done and trainer.global_step < steps and not trainer.should_stop:
            left = (now - self._began) / done * (steps - trainer.global_step)
            times.append(f"{format_duration(left)} left")
        parts = [place]
        if self._loss is not None:
            parts.append(f"train {format_loss(float(self._loss) / self._losses)}")
        self._print(trainer, module, [*parts, *self._scores], times)
        self._start_losses()
        self._scores, self._line_began = [], now

    def _print(
        self, trainer: L.Trainer, module: MLLMModule, parts: Sequence[str], times: Sequence[str]
    ) -> None:
        if not trainer.is_global_zero:
            return
        console = progress.console
        if len(module.results) > 1 and self._names_scorer:
            self._names_scorer = False
            scorer = next(iter(module.results))
            console.print(f"In these lines accuracy is by {scorer}, with its 95 % interval.")
        width = console.width if console.is_terminal else None
        line = join_line(parts, times, width)
        console.print(line, markup=False, soft_wrap=True)


def describe_scores(trainer: L.Trainer, module: MLLMModule) -> list[str]:
    """Return loss and accuracy of the evaluation that ends, e.g. `val 0.38`."""
    parts, name = [], "test" if trainer.testing else "val"
    loss = trainer.callback_metrics.get(f"{module.stage_name}/loss")
    if loss is not None:
        parts.append(f"{name} {format_loss(float(loss))}")
    if module.results:
        result = next(iter(module.results.values()))
        parts.append(f"accuracy {_format_accuracy(result.accuracy, result.accuracy_interval)}")
    elif module.exact_match is not None:
        score = module.exact_match.overall
        parts.append(f"exact match {_format_accuracy(score.accuracy, score.interval)}")
    return parts


def join_line(parts: Sequence[str], times: Sequence[str], width: int | None) -> str:
    """Return one line: parts, the time it took and the time left.

    Args:
        parts: What is always said.
        times: What is left out, from the first on, where there is no room for it.
        width: Columns of the terminal; None if there is room for everything.
    """
    line = " · ".join([*parts, *times])
    if width is not None and len(line) > width and times:
        return join_line(parts, times[1:], width)
    return line


def format_loss(loss: float) -> str:
    """Return a loss with two decimals, or with two digits where it is small."""
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.2g}"


def _format_accuracy(accuracy: float, interval: Interval) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(accuracy, *interval)


def _is_last_of_epoch(trainer: L.Trainer) -> bool:
    """Return whether the epoch ends after this validation, and its line is printed then."""
    steps, loop = trainer_total_steps(trainer), trainer.fit_loop.epoch_loop
    over = steps is not None and trainer.global_step >= steps
    return over or trainer.should_stop or loop.batch_progress.is_last_batch
