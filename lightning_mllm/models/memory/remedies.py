"""What makes a training fit into a device's memory: options in turn, and what is needed then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import PretrainedConfig

from lightning_mllm.errors import ConfigError
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
    for change, changed in _list_changes(need):
        tried = replace(need, **changed)
        try:
            estimate = estimate_memory(config, tried)
        except ConfigError:  # a fit would refuse it: the LLM is trained, or options don't agree
            continue
        if estimate.total > 0.99 * before.total:
            continue
        found.append(Remedy(change, estimate))
        need, before = tried, estimate
        if estimate.total <= limit:
            break
    return found


def _list_changes(need: MemoryNeed) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what can be changed, the cheapest first, and the fields that it changes."""
    if not need.gradient_checkpointing:
        yield "--model.gradient_checkpointing true", {"gradient_checkpointing": True}
    if need.micro_batch_size > 1:
        yield "--model.micro_batch_size 1", {"micro_batch_size": 1}
    if need.quantize is None:
        yield "--model.quantize nf4", {"quantize": "nf4"}
    small: dict[str, Any] = {"dtype": torch.bfloat16, "trained_dtype": "bfloat16"}
    has_torchao, is_sharded = find_spec("torchao") is not None, need.strategy == "fsdp2"
    if has_torchao and not is_sharded and need.trained_dtype == "float32":
        name = "--config configs/optimizer/bfloat16_adamw_8bit.yaml"
        yield name, {**small, "optimizer": _make_rounding_8bit}
    if need.device_type != "cuda":
        return
    options: list[str] = []
    changed: dict[str, Any] = {"strategy": "fsdp2", "processes": need.processes}
    if has_torchao:  # states in 8 bit can't be sharded
        options.append("--config configs/optimizer/bfloat16_adamw.yaml")
        changed |= {**small, "optimizer": _make_rounding}
    if not is_sharded:
        devices = need.processes if need.processes > 1 else _MOST_DEVICES
        options.append(f"--trainer.strategy fsdp2 --trainer.devices {devices}")
        changed["processes"] = devices
    yield " ".join(options), changed


def _make_rounding(params: Any, lr: float) -> Optimizer:
    # a package that users may lack
    from torchao.optim import _AdamW  # type: ignore[import-untyped]  # noqa: PLC0415

    optimizer: Optimizer = _AdamW(params, lr=lr, bf16_stochastic_round=True)
    return optimizer


def _make_rounding_8bit(params: Any, lr: float) -> Optimizer:
    from torchao.optim import AdamW8bit  # noqa: PLC0415  # as above

    optimizer: Optimizer = AdamW8bit(params, lr=lr, bf16_stochastic_round=True)
    return optimizer
