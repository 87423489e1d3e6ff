"""How a model is divided among processes as it is loaded: transformers with torch's `fully_shard`.

transformers makes the model without data, shards it, and lets each process read its own rows of
each tensor. Each decoder layer is a group that is gathered while it runs; all else (tower,
projector, embeddings, norm, head) is one group that is whole for as long as a training step lasts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PretrainedConfig

from lightning_mllm.checkpoint_files import checkpoint_config_parts
from lightning_mllm.errors import ConfigError

_PLAN = {"layers.*": "free_full_weight"}  # of the LLM; all else belongs to the root's group


@dataclass(frozen=True)
class Sharding:
    """How a model is divided among the processes.

    Attributes:
        device: Device of this process.
        whole_evaluation: Whether each process holds the whole model outside of training steps;
            otherwise one decoder layer at a time.
    """

    device: torch.device
    whole_evaluation: bool = True


@contextmanager
def sharded_loading(
    config: PretrainedConfig, sharding: Sharding | None
) -> Iterator[dict[str, Any]]:
    """Yield the options with which `from_pretrained` reads this process's shards only.

    Args:
        config: Config of the model, which gets a plan of what is a group.
        sharding: How the model is divided; None for a whole model, which needs no options.

    Raises:
        ConfigError: The model is quantised, transformers is too old, or it would shard onto another
            kind of device.
    """
    if sharding is None:
        yield {}
        return
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            "trainer.strategy fsdp2 divides weights by rows, which quantised weights do not have. "
            "Use --trainer.strategy ddp, or weights that are not quantised."
        )
    try:
        from transformers.distributed.configuration_utils import (  # noqa: PLC0415 - of late versions
            DistributedConfig,
        )

        options = {"distributed_config": DistributedConfig(fsdp_size=dist.get_world_size())}
    except (ImportError, TypeError) as error:
        raise ConfigError(
            "trainer.strategy fsdp2 needs transformers 5.23 or later, which loads a model in "
            "shards. Run: pip install --upgrade transformers."
        ) from error
    _check_accelerator(sharding.device)
    for part in checkpoint_config_parts(config):
        # a tower with groups of its own would be waited for by processes without a picture
        part.base_model_fsdp_plan = _PLAN if part is config.get_text_config() else {}  # type: ignore[misc]
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(sharding.device.index or 0)  # transformers takes this device
    try:
        yield options
    finally:
        os.environ.pop("LOCAL_RANK")
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _check_accelerator(device: torch.device) -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    kind = "cpu" if found is None else found.type
    if kind != device.type:
        raise ConfigError(
            f"trainer.strategy fsdp2 shards onto the {kind} of this machine, but "
            f"trainer.accelerator asks for {device.type}. Hide the accelerator from the processes "
            "(CUDA_VISIBLE_DEVICES= for GPUs), or leave trainer.accelerator out."
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether a model was divided among processes as it was loaded."""
    return isinstance(model, FSDPModule)
