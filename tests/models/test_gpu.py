"""What only an accelerator can show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mllm.data import Digits
from lightning_mllm.models.freeze import FreezePolicy, Lora, ProjectorAndLLM, ProjectorOnly
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(
    "policy", [ProjectorOnly(), ProjectorAndLLM(), Lora(rank=2, target="both")], ids=str
)
def test_a_fit_keeps_frozen_weights_in_bfloat16_and_trained_ones_in_float32(
    tiny_llava: str, tmp_path: Path, policy: FreezePolicy
) -> None:
    module = MLLMModule(tiny_llava, policy=policy, gradient_checkpointing=True)
    trainer = Trainer(
        logger=False,
        accelerator="cuda",
        devices=1,
        max_steps=3,
        limit_val_batches=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )

    trainer.fit(module, datamodule=Digits(checkpoint=tiny_llava, batch_size=8))

    trained = set(module.freeze_report.trainable_names)
    for name, parameter in module.backbone.parameters():
        assert parameter.dtype == (torch.float32 if name in trained else torch.bfloat16), name
        assert parameter.isfinite().all()
    assert set(module.results) == {"generation", "likelihood"}
