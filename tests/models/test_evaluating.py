"""A validation in one pass over its prompts logs what separate passes give."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from lightning_mllm.data import Digits
from lightning_mllm.evaluation import Generation, Likelihood
from lightning_mllm.models.freeze import ZeroShot
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.trainer import Trainer


class Seen(L.Callback):
    """Keeps what each step of a test returns."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any]] = []

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.steps.append((args[0], outputs))


def test_one_pass_gives_the_loss_and_the_predictions_of_three(tiny_llava: str) -> None:
    seen, scorers = Seen(), (Generation(max_new_tokens=4), Likelihood())
    module = MLLMModule(tiny_llava, policy=ZeroShot(), scorers=scorers)
    module.configure_model()
    runs: list[int] = []
    counter = module.backbone.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    data = Digits(checkpoint=tiny_llava, eval_batch_size=4)
    trainer = Trainer(logger=False, limit_test_batches=2, callbacks=[seen])
    (logged,) = trainer.test(module, datamodule=data, verbose=False)
    counter.remove()

    assert len(runs) == len(seen.steps) == 2  # the tower once per batch
    total = tokens = 0.0
    for batch, outputs in seen.steps:
        with torch.no_grad():
            loss = answer_loss(module.backbone, batch)
        torch.testing.assert_close(outputs["loss"], loss.mean, rtol=1e-6, atol=0)
        total, tokens = total + float(loss.total), tokens + float(loss.tokens)
        for scorer in scorers:
            found = outputs["predictions"][scorer.name]
            assert data.label_set is not None
            alone = scorer.predict(module.backbone.model, module.tokenizer, batch, data.label_set)
            assert found.answers == alone.answers
            assert torch.equal(found.predicted, alone.predicted)
    assert logged["test/loss"] == pytest.approx(total / tokens, rel=1e-6)
