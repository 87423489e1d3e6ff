"""Which optimisers can step weights that are divided among processes."""

from __future__ import annotations

import math

import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.optimisation.optimizer import (
    OptimizerFactory,
    make_probe_group,
    name_optimizer,
)


def check_sharded_optimizer(factory: OptimizerFactory) -> None:
    """Refuse an optimiser whose states can't be put together for a checkpoint.

    States of 8 or 4 bits are blocks with a scale each, which rows of a matrix do not respect. Those
    of torchao have an attribute `block_size`, infinite where states are plain numbers.

    Args:
        factory: Makes the optimiser.

    Raises:
        ConfigError: It is one.
    """
    optimizer = factory([make_probe_group(torch.zeros(2, 2))], 1e-3)
    name = name_optimizer(optimizer)
    in_blocks = getattr(optimizer, "block_size", math.inf) < math.inf
    if in_blocks or name.startswith("bitsandbytes."):
        raise ConfigError(
            f"{name} keeps its states in blocks, which trainer.strategy fsdp2 can't divide among "
            "processes. Use torch.optim.AdamW, or --config configs/optimizer/bfloat16_adamw.yaml, "
            "whose states are in 16 bits."
        )
