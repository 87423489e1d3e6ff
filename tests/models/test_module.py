"""The step that MLLMModule takes, without the command line."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import LlavaJson
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.freeze import (
    Everything,
    FreezePolicy,
    LLMOnly,
    Lora,
    ProjectorAndVision,
    ProjectorOnly,
)
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.source import Source
from lightning_mllm.trainer import Trainer
from tests.models.conftest import batch_of
from tests.support.command_line import picture


def _conversations(folder: Path, checkpoint: str) -> LlavaJson:
    """Eight samples with answers of unequal lengths, three of them without an image."""
    rows = [
        {
            "id": str(k),
            **({"image": f"{k}.png"} if k < 5 else {}),
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?" if k < 5 else "What is it?"},
                {"from": "gpt", "value": "word " * (3 * k + 1)},
            ],
        }
        for k in range(8)
    ]
    for k in range(5):
        picture(k).save(folder / f"{k}.png")
    (folder / "train.json").write_text(json.dumps(rows))
    file = str(folder / "train.json")
    return LlavaJson(
        train=file, val=file, image_root=str(folder), checkpoint=checkpoint, batch_size=8
    )


def _weights_after_a_step(data: LlavaJson, micro_batch_size: int | None) -> dict[str, torch.Tensor]:
    module = MLLMModule(
        data.checkpoint,
        policy=Everything(),
        optimizer=lambda params, lr: SGD(params, lr=lr),
        warmup_ratio=0.0,
        micro_batch_size=micro_batch_size,
    )
    trainer = Trainer(
        logger=False, max_steps=1, enable_checkpointing=False, enable_progress_bar=False
    )
    torch.manual_seed(0)
    trainer.fit(module, datamodule=data)
    return {name: weights.clone() for name, weights in module.state_dict().items()}


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8, 100])
def test_micro_batches_take_the_step_of_the_whole_batch(
    tiny_llava: str, tmp_path: Path, micro_batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = _conversations(tmp_path, tiny_llava)

    whole, pieces = (_weights_after_a_step(data, size) for size in (None, micro_batch_size))

    for name, weights in whole.items():
        torch.testing.assert_close(pieces[name], weights, rtol=1e-5, atol=1e-6, msg=name)


def test_a_batch_is_the_sum_of_its_pieces(tiny_llava_next: str) -> None:
    batch = batch_of(tiny_llava_next, size=5)

    pieces = batch.split(2)

    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece.input_ids for piece in pieces]), batch.input_ids)
    assert tuple(chain.from_iterable(piece.images for piece in pieces)) == batch.images


def test_some_samples_of_a_batch_keep_their_own_images(tiny_llava: str, tmp_path: Path) -> None:
    data = _conversations(tmp_path, tiny_llava)
    data.setup("fit")
    # 0 to 4 have an image, 5 to 7 have none
    batch = data.collator([(0, sample) for sample in data.samples["train"]])

    mixed, text = batch.take([3, 6, 0]), batch.take([7, 5])

    assert (mixed.sample_ids, mixed.image_counts) == (("3", "6", "0"), (1, 0, 1))
    assert torch.equal(mixed.input_ids, batch.input_ids[[3, 6, 0]])
    assert mixed.images == (batch.images[3], batch.images[0])
    assert (text.sample_ids, text.images) == (("7", "5"), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16-true"}, r"trainer\.precision .* model\.dtype"),
        ({"precision": "16-mixed"}, r"trainer\.precision"),
        ({"accumulate_grad_batches": 2}, r"model\.micro_batch_size"),
        ({"default_root_dir": "here"}, r"trainer\.run\.root"),
    ],
)
def test_options_that_have_another_place_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(**options)


def test_an_endless_training_is_refused(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(
        logger=False,
        max_epochs=-1,
        max_time="00:00:01:00",
        enable_checkpointing=False,
        enable_progress_bar=False,
    )

    with pytest.raises(ConfigError, match="needs an end"):
        trainer.fit(MLLMModule(tiny_llava), datamodule=_conversations(tmp_path, tiny_llava))


def test_training_is_one_epoch_unless_it_is_said() -> None:
    assert Trainer(logger=False).max_epochs == 1
    assert Trainer(logger=False, max_epochs=3).max_epochs == 3
    assert Trainer(logger=False, max_steps=7).max_epochs is None


@pytest.mark.parametrize(
    "policy",
    [ProjectorOnly(), LLMOnly(), ProjectorAndVision(), Everything(), Lora(rank=2, target="both")],
    ids=str,
)
def test_bfloat16_weights_train_in_float32(tiny_llava: str, policy: FreezePolicy) -> None:
    exact = AdaptedModel.load(Source(tiny_llava), policy, dtype=torch.float32)
    rounded = AdaptedModel.load(Source(tiny_llava), policy, dtype=torch.bfloat16)
    batch = batch_of(tiny_llava)

    with rounded.autocast("cpu"):
        loss = answer_loss(rounded.backbone, batch).mean
    loss.backward()

    for _, parameter in rounded.backbone.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None
    torch.testing.assert_close(loss, answer_loss(exact.backbone, batch).mean, rtol=0.02, atol=0.02)


class OwnStep(MLLMModule):
    """A user's own loss."""

    def training_step(self, batch: MultimodalBatch, batch_idx: int) -> Tensor:
        return answer_loss(self.backbone, batch).mean


def test_a_subclass_can_have_a_training_step_of_its_own(tiny_llava: str, tmp_path: Path) -> None:
    module = OwnStep(tiny_llava, warmup_ratio=0.0)
    trainer = Trainer(
        logger=False, max_steps=1, enable_checkpointing=False, enable_progress_bar=False
    )

    trainer.fit(module, datamodule=_conversations(tmp_path, tiny_llava))

    assert trainer.global_step == 1


def test_a_step_logs_no_number_that_would_have_to_go_to_the_accelerator(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, object] = {}
    log = MLLMModule.log

    def keep(module: MLLMModule, name: str, value: Any, **options: Any) -> None:
        if module.trainer.training:
            logged[name] = value
        log(module, name, value, **options)

    monkeypatch.setattr(MLLMModule, "log", keep)
    trainer = Trainer(
        logger=False, max_steps=1, enable_checkpointing=False, enable_progress_bar=False
    )

    trainer.fit(
        MLLMModule(tiny_llava, warmup_ratio=0.0), datamodule=_conversations(tmp_path, tiny_llava)
    )

    assert {"train/loss", "step", "epoch"} <= logged.keys()
    assert all(isinstance(value, Tensor) for value in logged.values())
