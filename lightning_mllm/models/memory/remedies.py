"""What makes a training fit into a device's memory: options in turn, and what is needed then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import PretrainedConfig

from lightning_mllm.models.memory.estimate import MemoryEstimate, MemoryNeed, estimate_memory

_MOST_DEVICES = 8  # of one machine


@dataclass(frozen=True)
class Remedy:
    """A change of options.

    Attributes:
        change: What to type, together with the changes before it.
        estimate: What is needed then.
    """

    change: str
    estimate: MemoryEstimate


def find_remedies(
    config: PretrainedConfig, need: MemoryNeed, now: MemoryEstimate, limit: float
) -> list[Remedy]:
    """Return changes that are made one after the other until the training fits, or none is left.

    Changes that gain less than a hundredth are left out.

    Args:
        config: The config of the checkpoint.
        need: What is trained and how.
        now: What that needs.
        limit: GiB that a device has for it.
    """
    found: list[Remedy] = []
    before = now
    for change, changed in _list_changes(need, now):
        tried = replace(need, **changed)
        estimate = estimate_memory(config, tried)
        if estimate.total > 0.99 * before.total:
            continue
        found.append(Remedy(change, estimate))
        need, before = tried, estimate
        if estimate.total <= limit:
            break
    return found


def _list_changes(need: MemoryNeed, now: MemoryEstimate) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what can be changed, the cheapest first, and the fields that it changes."""
    if not need.gradient_checkpointing:
        yield "--model.gradient_checkpointing true", {"gradient_checkpointing": True}
    if need.micro_batch_size > 1:
        yield "--model.micro_batch_size 1", {"micro_batch_size": 1}
    if need.quantize is None and now.gradients < 0.1 * now.weights:  # the LLM is frozen
        yield "--model.quantize nf4", {"quantize": "nf4"}
    elif need.quantize is None:
        if need.trained_dtype == "float32" and find_spec("torchao") is not None:
            yield (
                "--config configs/optimizer/bfloat16_adamw_8bit.yaml",
                {
                    "dtype": torch.bfloat16,
                    "trained_dtype": "bfloat16",
                    "optimizer": _make_rounding_8bit,
                },
            )
        if need.strategy != "fsdp2" and need.device_type == "cuda":
            devices = need.processes if need.processes > 1 else _MOST_DEVICES
            yield (
                f"--trainer.strategy fsdp2 --trainer.devices {devices}",
                {"strategy": "fsdp2", "processes": devices},
            )


def _make_rounding_8bit(params: Any, lr: float) -> Optimizer:
    # a package that users may lack
    from torchao.optim import AdamW8bit  # type: ignore[import-untyped]  # noqa: PLC0415

    optimizer: Optimizer = AdamW8bit(params, lr=lr, bf16_stochastic_round=True)
    return optimizer
