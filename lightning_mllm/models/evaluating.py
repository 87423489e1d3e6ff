"""The half of `MLLMModule` that evaluates: validation and test, over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation import (
    AnswerResult,
    ClassificationResult,
    Evaluator,
    PromptPass,
    Scorer,
)
from lightning_mllm.evaluation.evaluator import EvaluatedBatch
from lightning_mllm.evaluation.prompt_pass import rounds_by_all_tokens
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.divergence import DivergenceWatch
from lightning_mllm.models.freeze_report import FreezeReport
from lightning_mllm.models.loss import answer_loss


class EvaluatingModule(L.LightningModule):
    """Evaluates a model on each validation and test split.

    Args:
        scorers: How answers become predictions on classification data.

    Attributes:
        adapted: The model; a subclass loads it.
        tokenizer: The model's tokenizer; a subclass loads it.
        test_prefix: Prefix of the metrics of a test.

    Raises:
        ConfigError: Two scorers have one name.
    """

    adapted: AdaptedModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        super().__init__()
        self.evaluator = Evaluator(scorers)
        self.test_prefix = "test"
        self._loaded_steps: int | None = None  # of a loaded checkpoint, until it is trained on

    def validation_step(self, batch: MultimodalBatch, batch_idx: int) -> dict[str, Any]:
        """Evaluate a batch.

        Returns:
            `loss`, `predictions` per scorer, and `answers` of free-form samples that have a kind.
        """
        model, plain = self.adapted.backbone.model, self.adapted.edit is None
        scored = self.evaluator.asked(batch)
        # an edit may differ between batches, and between a prompt with and without its answer
        asked = PromptPass(model, batch, with_answers=plain and len(scored) > 0)
        # the loss also tells which answers greedy decoding gives, where both round alike
        rough = self.adapted.low_precision or rounds_by_all_tokens(model)
        greedy = plain and not rough
        with self.adapted.autocast(self.device.type):
            with self.adapted.edited(batch):
                hidden = asked.hidden if asked.with_answers else None
                loss = answer_loss(self.adapted.backbone, batch, with_greedy=greedy, hidden=hidden)
            where = f"of {self.stage_name} after step {self.trained_steps}"
            DivergenceWatch.of(loss.total, batch).check(self.adapted, where)
            with self.adapted.edited(scored):
                found = self.evaluator.score(asked, self.tokenizer, loss.greedy)
        self._loss_sum += torch.stack([loss.total, loss.tokens.float()]).cpu()
        return {"loss": loss.mean, "predictions": found.predictions, "answers": found.answers}

    def answer(self, batch: MultimodalBatch, max_new_tokens: int = 128) -> EvaluatedBatch:
        """Answer every sample of a batch as `test` does, and count nothing.

        Args:
            batch: Samples; answers in it are not used, except to score those that have a kind.
            max_new_tokens: Length at which the answer to a free-form sample without a kind is cut.
        """
        model, joined = self.adapted.backbone.model, EvaluatedBatch()
        with self.adapted.autocast(self.device.type):
            for part in self.evaluator.list_parts(batch):
                with self.adapted.edited(part):
                    asked = PromptPass(model, part)
                    found = self.evaluator.answer(asked, self.tokenizer, max_new_tokens)
                answers, texts = joined.answers + found.answers, joined.texts | found.texts
                joined = EvaluatedBatch(found.predictions, answers, texts)
        return joined

    def on_validation_epoch_start(self) -> None:
        """Start the sums again."""
        # loss and tokens; on the CPU, since not every accelerator has float64
        self._loss_sum = torch.zeros(2, dtype=torch.float64)
        self.evaluator.reset()

    def on_validation_epoch_end(self) -> None:
        """Log loss and scores over all samples of all processes."""
        sums = self._loss_sum.float().to(self.device)
        total, tokens = self._over_processes(sums).sum(dim=0)
        scores = {"loss": total / tokens, **self.evaluator.finish()}
        logged = {f"{self.stage_name}/{name}": value for name, value in scores.items()}
        if self.trainer.state.fn != "fit":  # a fit has logged it at its start
            split = "test" if self.trainer.testing else "val"
            logged |= self.trainer.datamodule.left_out_metrics(split)  # type: ignore[attr-defined]
        self.log_dict({**logged, **self._moment(self.trained_steps)}, sync_dist=True)

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def train(self, mode: bool = True) -> Self:
        """Switch between train and eval mode; a frozen tower or projection stays in eval mode."""
        super().train(mode)
        if mode and hasattr(self, "adapted"):
            self.adapted.set_train_modes()
        return self

    def predict_step(self, batch: MultimodalBatch, batch_idx: int) -> int:
        """Return the size of a batch; `Trainer.analyze` has a callback that analyses it."""
        return len(batch)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the trained weights only, named as in the Hugging Face model."""
        return self.adapted.trained_state()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Put trained weights back; `on_load_checkpoint` has checked their names."""
        self.adapted.load_trained_state(state_dict)

    @property
    def backbone(self) -> Backbone:
        """The model; available after `configure_model`."""
        return self.adapted.backbone

    @property
    def freeze_report(self) -> FreezeReport:
        """What the policy made trainable; available after `configure_model`."""
        return self.adapted.report

    @property
    def stage_name(self) -> str:
        """Prefix of the metrics of the current evaluation: `val`, or `test_prefix`."""
        return self.test_prefix if self.trainer.testing else "val"

    @property
    def results(self) -> dict[str, ClassificationResult]:
        """Scorer name -> scores of the last evaluation; empty for free-form data."""
        return self.evaluator.results

    @property
    def exact_match(self) -> AnswerResult | None:
        """Scores of the open answers of the last evaluation; None if there were none."""
        return self.evaluator.exact_match

    @property
    def will_fit(self) -> bool:
        """Whether the trainer trains, be it after an evaluation."""
        return bool(getattr(self._trainer, "will_fit", False))

    @property
    def trained_steps(self) -> int:
        """Optimiser steps that the current weights have had, also before they were loaded."""
        return self.trainer.global_step if self._loaded_steps is None else self._loaded_steps

    def _moment(self, step: int) -> dict[str, float]:
        """Return the step and epoch under which numbers are logged.

        Lightning's own step is one less in a fit, and 0 in the test of a checkpoint.
        """
        return {"step": float(step), "epoch": float(self.current_epoch)}

    def _over_processes(self, values: Tensor) -> Tensor:
        """(...) on each process -> (processes, ...) on all."""
        gathered = self.all_gather(values)
        assert isinstance(gathered, Tensor)
        return gathered.view(-1, *values.shape)
