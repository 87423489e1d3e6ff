"""Which optimisers and weights a fit under `fsdp2` refuses, before anything is sharded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.optim import AdamW

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.fit_checks import check_fit_trainable
from lightning_mllm.models.freeze import Lora
from lightning_mllm.models.optimisation.muon import MuonAdamW
from lightning_mllm.models.optimisation.schedule import LearningRates
from lightning_mllm.models.optimisation.sharded import check_sharded_optimizer
from lightning_mllm.models.source import Source
from tests.support.memory_page import rounding, rounding_8_bit


def test_states_in_blocks_can_not_be_sharded() -> None:
    with pytest.raises(ConfigError, match=r"AdamW8bit keeps its states in blocks.*bfloat16_adamw"):
        check_sharded_optimizer(rounding_8_bit)
    for factory in (AdamW, MuonAdamW, rounding):
        check_sharded_optimizer(factory)


def test_adapters_in_bfloat16_beside_shards_are_refused(tiny_llava: str) -> None:
    adapted = AdaptedModel.load(
        Source(tiny_llava),
        Lora(rank=2, projector=True),
        dtype=torch.bfloat16,
        trained_dtype="bfloat16",
    )
    trained = adapted.trained_parameters()
    adapters = [each for name, each in trained.items() if ".lora_" in name]
    adapted.shards = SimpleNamespace(loose=adapters)  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="would not stay the same on all"):
        check_fit_trainable(adapted, LearningRates())
    adapted.shards = SimpleNamespace(loose=list(trained.values()))  # type: ignore[assignment]
    check_fit_trainable(adapted, LearningRates())
