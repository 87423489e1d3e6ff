"""Trains, and evaluates, a model that skips computations."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.analysis.skipping.choice import SampleTokens, skips_nothing
from lightning_mllm.analysis.skipping.context import check_skip, skipped
from lightning_mllm.analysis.skipping.spec import Skip
from lightning_mllm.callbacks import trainer_state
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import MultimodalBatch

logger = logging.getLogger(__name__)


class SkipComputations(L.Callback):
    """Lets the model skip computations in each training step and, unless it is said otherwise, each evaluation.

    What is trained learns to do without what is skipped, as in "Skipping Computations in Multimodal LLMs" (Shukor and
    Cord, 2024, arXiv 2410.09454). Of a sample the same tokens are skipped in each epoch, in whatever micro-batch it
    is. Analyses and probes see the whole model. Weights that no token comes by get no gradient: DDP has to be told,
    with `trainer.strategy: ddp_find_unused_parameters_true`.

    ```yaml
    trainer:
      callbacks:
        - class_path: SkipComputations
          init_args: {skip: {computation: block, share: 0.5, start: 0.25}}
    ```

    Args:
        skip: What is skipped.
        in_evaluation: Whether validation and test skip it too.

    Raises:
        ConfigError: At the start of a run: the model can't skip it, see `skipping`.
    """

    def __init__(self, skip: Skip, *, in_evaluation: bool = True) -> None:
        self.skip, self.in_evaluation = skip, in_evaluation
        self._batches, self._acts = 0, False  # that should skip, and whether a token of any did

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let training skip, and its validations."""
        self._put_in(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a validation skip."""
        self._put_in(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a test skip."""
        self._put_in(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the module as it was; say so if nothing was skipped."""
        if self._batches and not self._acts:
            logger.warning(
                "SkipComputations skipped nothing in any of %d batches: a share of %s of their %s tokens is less than "
                "one token.",
                *(self._batches, self.skip.share, self.skip.tokens),
            )
        self._batches, self._acts = 0, False
        trainer_state.mllm(pl_module).adapted.edit = None

    def _put_in(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.in_evaluation and trainer.state.fn != TrainerFn.FITTING:
            return
        adapted = trainer_state.mllm(pl_module).adapted
        with adapted.autocast(pl_module.device.type):  # weights of several precisions go together there only
            check_skip(adapted.backbone, self.skip)

        def edit(backbone: Backbone, batch: MultimodalBatch) -> AbstractContextManager[None]:
            if not (self.in_evaluation or trainer.training):
                return nullcontext()
            tokens = SampleTokens.of(batch)
            self._batches += 1
            self._acts = self._acts or not skips_nothing(tokens, self.skip)
            return skipped(backbone, tokens, self.skip)

        adapted.edit = edit
