"""What an optimiser keeps and needs for its step, measured on small weights of a model's dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.models.memory.storages import StorageCounter
from lightning_mllm.models.optimisation.optimizer import (
    OptimizerFactory,
    make_probe_group,
    steps_by_lists,
)

_SIDE = 512  # of a weight that stands for the weights of a group


@dataclass(frozen=True)
class OptimizerBytes:
    """What an optimiser needs besides weights and gradients, in bytes.

    Attributes:
        states: States that are kept between steps.
        step: What exists beside the states during a step.
    """

    states: int
    step: int


def measure_optimizer(
    factory: OptimizerFactory, groups: Sequence[Mapping[str, Any]], device_type: str
) -> OptimizerBytes:
    """Return what an optimiser needs for parameter groups.

    The optimiser takes two real steps with a small weight in place of those of each group. What
    that weight needs is taken times the size of the group's.

    Args:
        factory: Makes the optimiser.
        groups: Groups of `scheduled_parameter_groups`, whose parameters may lack data.
        device_type: Where the weights will be.
    """
    small = []
    for group in groups:
        keys = {name: value for name, value in group.items() if name != "params"}
        small.append(make_probe_group(_make_weight(group["params"]), **keys))
    optimizer = factory(small, 1e-3)
    states, step = 0.0, 0.0
    for group, probe in zip(groups, small, strict=True):
        sizes = [parameter.numel() for parameter in group["params"]]
        kept, needed = _measure_steps(optimizer, probe["params"][0])
        states += kept * sum(sizes)
        made = _find_group(optimizer, probe["params"][0])
        if steps_by_lists(made, device_type):
            # `make_optimizer` lets torch's own step in one kernel where they can
            needed = 0.0 if "fused" in made and made["foreach"] is None else needed * sum(sizes)
        else:  # one weight after the other; compiled steps, without `foreach`, need next to nothing
            needed = needed * max(sizes) if "foreach" in made else 0.0
        step = max(step, needed)
    return OptimizerBytes(round(states), round(step))


def _make_weight(parameters: Sequence[Tensor]) -> Tensor:
    shape = (_SIDE, _SIDE) if parameters[0].ndim > 1 else (_SIDE * _SIDE,)
    return torch.zeros(shape, dtype=parameters[0].dtype)


def _measure_steps(optimizer: Any, weight: Tensor) -> tuple[float, float]:
    """Return bytes of states, and of what a step needs beside them, per element of a weight."""
    weight.grad = torch.zeros_like(weight)
    stance: Any = torch.compiler.set_stance("force_eager")  # to compile a step takes long
    with stance, StorageCounter() as counter:
        counter.add([weight, weight.grad])
        before = counter.live
        optimizer.step()
        states = counter.live - before
        counter.peak = counter.live
        optimizer.step()
        step = counter.peak - counter.live
    weight.grad = None
    return states / weight.numel(), step / weight.numel()


def _find_group(optimizer: Any, weight: Tensor) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(each is weight for each in group["params"]):
            found: dict[str, Any] = group
            return found
    return {}
