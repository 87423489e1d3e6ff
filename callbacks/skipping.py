"""Trains, and evaluates, a model that skips computations."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.analysis.skipping.choice import chooses_nothing
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import check_skipping, skipped
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks.trainer_state import trainer_answers, trainer_mllm
from lightning_mllm.models.backbone import Backbone

logger = logging.getLogger(__name__)


class SkipComputations(L.Callback):
    """Lets the model skip computations in each training step and, by default, each evaluation.

    The trained weights learn to do without the skipped computations, as in "Skipping Computations
    in Multimodal LLMs" (Shukor and Cord, 2024, arXiv 2410.09454). A sample skips the same tokens
    in each epoch and in any micro-batch. Analyses and probes use the whole model. Weights that no
    token passes get no gradient; DDP needs `trainer.strategy: ddp_find_unused_parameters_true`.

    ```yaml
    trainer:
      callbacks:
        - class_path: SkipComputations
          init_args: {skip: {computation: block, share: 0.5, start: 0.25}}
    ```

    Args:
        skip: Which computations are skipped, and for which tokens.
        in_evaluation: Whether validation, test and the answers of `predict` skip them too.

    Raises:
        ConfigError: The model can't skip this, see `skipping`. Raised at the start of a run.
    """

    def __init__(self, skip: Skip, *, in_evaluation: bool = True) -> None:
        self.skip, self.in_evaluation = skip, in_evaluation
        self._batches = 0  # that should skip
        self._has_skipped = False  # a token of any of them

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let training skip, and its validations."""
        self._install(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a validation skip."""
        self._install(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a test skip."""
        self._install(trainer, pl_module)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let answers skip as those of a test do."""
        if trainer_answers(trainer):
            self._install(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the module as it was; warn if nothing was skipped."""
        if self._batches and not self._has_skipped:
            logger.warning(
                "SkipComputations skipped nothing in any of %d batches: a share of %s of their %s "
                "tokens is less than one token.",
                self._batches,
                self.skip.share,
                self.skip.tokens,
            )
        self._batches, self._has_skipped = 0, False
        trainer_mllm(pl_module).adapted.edit = None

    def _install(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the module enter the skip for every batch."""
        if not self.in_evaluation and trainer.state.fn != TrainerFn.FITTING:
            return
        adapted = trainer_mllm(pl_module).adapted
        with adapted.autocast(pl_module.device.type):  # mixed precisions need autocast
            check_skipping(adapted.backbone, self.skip)

        def edit(backbone: Backbone, batch: MultimodalBatch) -> AbstractContextManager[None]:
            if not (self.in_evaluation or trainer.training):
                return nullcontext()
            tokens = SampleTokens.of(batch)
            self._batches += 1
            self._has_skipped = self._has_skipped or not chooses_nothing(tokens, self.skip)
            return skipped(backbone, tokens, self.skip)

        adapted.edit = edit
