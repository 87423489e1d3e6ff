"""A training stops at the first loss that is not finite; no weights and no checkpoint suffer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Digits
from lightning_mllm.errors import NotFiniteError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.schedule import LearningRates
from lightning_mllm.trainer import Trainer
from tests.support.command_line import isolate


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


class Spoil(L.Callback):
    """Does harm at a step, counted from 0: to the batch before it, or to the weights behind it."""

    def __init__(
        self,
        step: int,
        *,
        batch: Callable[[MultimodalBatch], None] | None = None,
        weights: Callable[[MLLMModule], None] | None = None,
    ) -> None:
        self.step, self.batch, self.weights = step, batch, weights
        self.kept: dict[str, Tensor] = {}  # the weights before the step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any
    ) -> None:
        if trainer.global_step == self.step:
            assert isinstance(pl_module, MLLMModule)
            self.kept = {name: weights.clone() for name, weights in pl_module.state_dict().items()}
            if self.batch is not None:
                self.batch(batch)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.global_step == self.step and self.weights is not None:
            assert isinstance(pl_module, MLLMModule)
            self.weights(pl_module)


def _fit(
    checkpoint: str, spoil: Spoil | None, *, saves: bool = False, **options: Any
) -> MLLMModule:
    """Fit for four steps of four digits, then validate; return the module, also of a failed fit."""
    callbacks = [
        *([spoil] if spoil else []),
        *([ModelCheckpoint("kept", every_n_train_steps=1)] if saves else []),
    ]
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": saves,
    }
    trainer = Trainer(
        **quiet, max_steps=4, val_check_interval=4, limit_val_batches=1, callbacks=callbacks
    )
    module = MLLMModule(checkpoint, scorers=(), **options)
    module.trainer = trainer
    data = Digits(checkpoint=checkpoint, batch_size=4, eval_batch_size=4)
    try:
        trainer.fit(module, datamodule=data)
    except NotFiniteError as error:
        error.args = (*error.args, module)
        raise
    return module


def _spoil_picture(batch: MultimodalBatch) -> None:
    batch.images[1]["pixel_values"].fill_(math.nan)


def _spoil_gradients(module: MLLMModule) -> None:
    for _, parameter in module.backbone.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(math.inf)


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_the_first_loss_that_is_not_finite_stops_the_training_before_its_step(
    tiny_llava: str, micro_batch_size: int | None
) -> None:
    spoil = Spoil(2, batch=_spoil_picture)

    with pytest.raises(
        NotFiniteError, match=r"The loss of step 3 is not finite: that of 1 of the 4 samples"
    ) as caught:
        _fit(tiny_llava, spoil, micro_batch_size=micro_batch_size)

    message, module = caught.value.args
    assert "digit-" in message
    assert "look at them or leave them out" in message
    for name, weights in module.state_dict().items():
        assert torch.equal(weights, spoil.kept[name]), name


def test_weights_that_a_step_has_broken_are_named_and_not_kept(tiny_llava: str) -> None:
    with pytest.raises(
        NotFiniteError,
        match=r"After step 2 4 trained tensors have NaN.*no checkpoint.*learning_rates",
    ):
        _fit(tiny_llava, Spoil(1, weights=_spoil_gradients), saves=True)

    (path,) = Path("kept").glob("*.ckpt")
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 1
    assert all(weights.isfinite().all() for weights in content["state_dict"].values())


@pytest.mark.parametrize(("step", "where"), [(1, "of step 3"), (3, "of val after step 4")])
def test_without_a_checkpoint_the_next_loss_finds_them(
    tiny_llava: str, step: int, where: str
) -> None:
    match = (
        rf"The loss {where} is not finite, and neither are 4 trained tensors, "
        r"e\.g\. '.*multi_modal_projector"
    )
    with pytest.raises(NotFiniteError, match=match):
        _fit(tiny_llava, Spoil(step, weights=_spoil_gradients))


def test_a_rate_that_is_far_too_large_stops_with_the_remedy(tiny_llava: str) -> None:
    with pytest.raises(NotFiniteError, match=r"is not finite.*Lower model\.learning_rates"):
        _fit(tiny_llava, None, learning_rates=LearningRates(projector=1e30), warmup_ratio=0.0)


def test_a_checkpoint_that_is_broken_itself_is_said_to_be(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure = MLLMModule.configure_model

    def broken(module: MLLMModule) -> None:
        configure(module)
        next(module.backbone.lm_head.parameters()).data[0, 0] = math.nan

    monkeypatch.setattr(MLLMModule, "configure_model", broken)

    with pytest.raises(
        NotFiniteError,
        match=r"because the checkpoint is not: 1 of its tensors .*'.*lm_head.weight'",
    ):
        _fit(tiny_llava, None)
