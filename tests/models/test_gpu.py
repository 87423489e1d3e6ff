"""What only an accelerator can show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mllm.data import Digits
from lightning_mllm.models.freeze import FreezePolicy, Lora, ProjectorAndLLM, ProjectorOnly
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.optimizer import make_optimizer
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


def test_torchs_adamw_takes_its_step_without_a_copy_of_the_weights() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(4, 4, device="cuda"))], "lr": 1e-3}]

    optimizer = make_optimizer(lambda params, lr: torch.optim.AdamW(params, lr=lr), groups, 1e-3)

    assert optimizer.param_groups[0]["fused"]


def test_offloaded_states_give_the_step_of_adamw_with_clipped_gradients() -> None:
    from lightning_mllm.models.optimisation.offload import (  # wants CUDA
        OffloadedAdamW,
    )

    weights = []
    for kind in (OffloadedAdamW, torch.optim.AdamW):
        weight = torch.nn.Parameter(torch.ones(100, 100, device="cuda"))
        optimizer = kind([{"params": [weight]}], lr=0.1, weight_decay=0.0)
        for _ in range(3):
            weight.grad = None
            (weight * torch.arange(100.0, device="cuda")).sum().backward()
            torch.nn.utils.clip_grad_norm_([weight], 1.0)
            optimizer.step()
        weights.append(weight.detach().cpu())
        assert not [each for each in optimizer.state.values() if kind is OffloadedAdamW]

    torch.testing.assert_close(*weights)
