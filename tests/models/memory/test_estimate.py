"""What `estimate_memory` says, held against measurements, and against real steps of small models."""

from __future__ import annotations

from typing import Any

import pytest
from torch.optim import SGD, AdamW
from torchao.optim import AdamW8bit, _AdamW
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from lightning_mllm.models.freeze import Lora, ProjectorAndLLM, ProjectorOnly
from lightning_mllm.models.memory.estimate import MemoryNeed, estimate_memory


def llava(size: str) -> LlavaConfig:
    """Return the config of LLaVA-1.5 with 7 or 13 billion parameters: 576 visual tokens."""
    width, inner, layers = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40)}[size]
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        vocab_size=32064,
        max_position_embeddings=4096,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    return LlavaConfig(text_config=text, vision_config=vision, image_token_id=32000)


def rounding(params: Any, lr: float) -> AdamW8bit:
    return _AdamW(params, lr=lr, bf16_stochastic_round=True)


MEASURED = {  # with fake tensors through the whole training step: size, options, peak in GiB
    "FT-Proj": ("7b", {"policy": ProjectorOnly(), "gradient_checkpointing": True}, 14.1),
    "FT-Proj of 13b": ("13b", {"policy": ProjectorOnly(), "gradient_checkpointing": True}, 25.6),
    "FT-Proj, 16 samples": (
        "7b",
        {"policy": ProjectorOnly(), "gradient_checkpointing": True, "micro_batch_size": 16},
        17.9,
    ),
    "FT-Proj, without checkpointing": ("7b", {"policy": ProjectorOnly()}, 16.0),
    "FT-Proj, 4 samples without": (
        "7b",
        {"policy": ProjectorOnly(), "micro_batch_size": 4},
        23.8,
    ),
    "FT-E2E": ("7b", {"policy": ProjectorAndLLM(), "gradient_checkpointing": True}, 102.8),
    "FT-E2E, 16 samples": (
        "7b",
        {"policy": ProjectorAndLLM(), "gradient_checkpointing": True, "micro_batch_size": 16},
        104.0,
    ),
    "FT-E2E of 13b": ("13b", {"policy": ProjectorAndLLM(), "gradient_checkpointing": True}, 196.9),
    "FT-E2E in bfloat16": (
        "7b",
        {
            "policy": ProjectorAndLLM(),
            "gradient_checkpointing": True,
            "trained_dtype": "bfloat16",
            "optimizer": rounding,
        },
        51.7,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MEASURED)
def test_the_total_is_within_a_tenth_of_what_was_measured(case: str) -> None:
    size, options, measured = MEASURED[case]

    estimate = estimate_memory(llava(size), MemoryNeed(**options))

    print(case, estimate.rows(), measured)
    assert estimate.total == pytest.approx(measured, rel=0.1)
