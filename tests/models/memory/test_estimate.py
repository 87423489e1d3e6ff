"""What `estimate_memory` says, held against measurements and real steps of small models."""

from __future__ import annotations

from typing import Any

import pytest
from torchao.optim import AdamW8bit, _AdamW

from lightning_mllm.models.freeze import ProjectorAndLLM, ProjectorOnly
from lightning_mllm.models.memory.estimate import MemoryNeed, estimate_memory
from tests.support.llava_configs import llava_config


def rounding(params: Any, lr: float) -> AdamW8bit:
    return _AdamW(params, lr=lr, bf16_stochastic_round=True)


MEASURED = {  # with fake tensors through the whole training step: size, options, peak in GiB
    "FT-Proj": ("7B", {"policy": ProjectorOnly(), "gradient_checkpointing": True}, 14.1),
    "FT-Proj of 13b": ("13B", {"policy": ProjectorOnly(), "gradient_checkpointing": True}, 25.6),
    "FT-Proj, 16 samples": (
        "7B",
        {"policy": ProjectorOnly(), "gradient_checkpointing": True, "micro_batch_size": 16},
        17.9,
    ),
    "FT-Proj, without checkpointing": ("7B", {"policy": ProjectorOnly()}, 16.0),
    "FT-Proj, 4 samples without": (
        "7B",
        {"policy": ProjectorOnly(), "micro_batch_size": 4},
        23.8,
    ),
    "FT-E2E": ("7B", {"policy": ProjectorAndLLM(), "gradient_checkpointing": True}, 102.8),
    "FT-E2E, 16 samples": (
        "7B",
        {"policy": ProjectorAndLLM(), "gradient_checkpointing": True, "micro_batch_size": 16},
        104.0,
    ),
    "FT-E2E of 13b": ("13B", {"policy": ProjectorAndLLM(), "gradient_checkpointing": True}, 196.9),
    "FT-E2E in bfloat16": (
        "7B",
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

    estimate = estimate_memory(llava_config(size), MemoryNeed(**options))

    print(case, estimate.rows(), measured)
    assert estimate.total == pytest.approx(measured, rel=0.1)
