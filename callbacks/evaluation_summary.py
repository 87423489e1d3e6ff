"""Keeps what the evaluations of a command found, and shows it in one table at its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L

from lightning_mllm import progress
from lightning_mllm.callbacks.checkpointing import Checkpointing
from lightning_mllm.callbacks.feature_callback import FeatureCallback
from lightning_mllm.callbacks.score_tables import (
    explain_brackets,
    score_table,
    score_table_of_kinds,
)
from lightning_mllm.callbacks.summary_table import (
    EvaluationScores,
    SummaryColumn,
    draw_summary_table,
)
from lightning_mllm.callbacks.trainer_state import trainer_mllm
from lightning_mllm.callbacks.watched_split import watched_samples
from lightning_mllm.models.module import MLLMModule


class EvaluationSummary(L.Callback):
    """Keeps the scores before the training, at its best and at its end, and shows them in a table.

    The best validation is that of the metric that the checkpoints go by, or else the one with the
    lowest loss.
    """

    def __init__(self) -> None:
        self._before: dict[str, EvaluationScores] = {}  # split -> scores
        self._last: dict[str, EvaluationScores] = {}
        self._best: EvaluationScores | None = None
        self._best_value = math.inf
        self._best_by = ""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scores of an evaluation."""
        if trainer.sanity_checking:
            return
        module = trainer_mllm(pl_module)
        scores = _take_scores(trainer, module)
        if trainer.state.fn == "fit":
            self._keep_if_best(trainer, scores)
        if trainer.state.fn != "fit" and not module.trained_steps:
            self._before[scores.split] = scores
        else:
            self._last[scores.split] = scores

    on_test_end = on_validation_end

    def show_results(self, trainer: L.Trainer) -> None:
        """Show the scores of all evaluations, then those of features, and say where all is.

        Our Trainer calls this at the end of each `fit`, `validate` and `test`.
        """
        if not trainer.is_global_zero:
            return
        self.print_table()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning's
        for each in callbacks:
            if isinstance(each, FeatureCallback):
                each.print_table()
        if trainer.loggers:
            folder = trainer.default_root_dir
            pictures = ", ".join(path.name for path in sorted(Path(folder).glob("*.png")))
            text = f"Results are in {folder}{f': {pictures}' if pictures else ''}"
            progress.console.print(text, markup=False, soft_wrap=True)

    def print_table(self) -> None:
        """Print all that is known: a column per moment of a fit, or the table of an evaluation."""
        validation = self._last.get("validation")
        found = [*self._before.values(), *self._last.values()]
        if self._best is None and len(found) == 1:
            _print_evaluation(found[0])
            return
        columns = [SummaryColumn("before", self._before)]
        best = self._best
        if best is not None and validation is not None and best.step < validation.step:
            columns.append(SummaryColumn("best", {"validation": best}))
        is_best = best is not None and validation is not None and best.step == validation.step
        columns.append(SummaryColumn("best and last" if is_best else "last", self._last))
        columns = [each for each in columns if each.scores]
        if columns:
            table = draw_summary_table(columns)
            best_by = f" · best validation: {self._best_by}" if self._best_by else ""
            progress.console.print(table, explain_brackets(table, best_by))

    def _keep_if_best(self, trainer: L.Trainer, scores: EvaluationScores) -> None:
        metric, mode = _deciding_metric(trainer)
        sign = -1 if mode == "max" else 1
        value = trainer.callback_metrics.get(metric)
        if value is not None and sign * float(value) < self._best_value:
            self._best, self._best_value = scores, sign * float(value)
            self._best_by = f"{'lowest' if sign > 0 else 'highest'} {metric}"


def _deciding_metric(trainer: L.Trainer) -> tuple[str, str]:
    """Return the metric that the checkpoints go by, or else the loss, and `min` or `max`."""
    checkpoints = trainer.checkpoint_callbacks
    for callback in checkpoints:
        if isinstance(callback, Checkpointing) and callback.best is not None:
            return callback.best.name, callback.best.mode
    for callback in checkpoints:
        monitor = getattr(callback, "monitor", None)
        if monitor in trainer.callback_metrics:
            return monitor, getattr(callback, "mode", "min")
    return "val/loss", "min"


def _take_scores(trainer: L.Trainer, module: MLLMModule) -> EvaluationScores:
    loss = trainer.callback_metrics.get(f"{module.stage_name}/loss")
    return EvaluationScores(
        split="test" if trainer.testing else "validation",
        step=module.trained_steps,
        n=len(watched_samples(trainer, "test" if trainer.testing else "val")),
        loss=math.nan if loss is None else float(loss),
        results=dict(module.results),
        answers=module.exact_match,
    )


def _print_evaluation(scores: EvaluationScores) -> None:
    title = f"{scores.split}, step {scores.step}, loss {scores.loss:.3f}"
    if scores.results:
        progress.console.print(score_table(title, scores.results))
    elif scores.answers is not None:
        progress.console.print(score_table_of_kinds(title, scores.answers))
    else:
        progress.console.print(f"{title}, N = {scores.n}")
