"""Trained weights in 16 bit: which optimisers may have them, and what their rounding draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.optimisation.lost_updates import explain_lost_updates
from lightning_mllm.models.optimisation.optimizer import OptimizerFactory, make_probe_group

TrainedDType = Literal["float32", "bfloat16"]


def rounds_stochastically(optimizer: Optimizer) -> bool:
    """Return whether an optimiser rounds bfloat16 weights up or down by chance.

    Such an optimiser says so by an attribute `bf16_stochastic_round`, as those of torchao do.
    """
    return bool(getattr(optimizer, "bf16_stochastic_round", False))


def check_trained_dtype(
    trained: TrainedDType, dtype: torch.dtype, factory: OptimizerFactory
) -> None:
    """Refuse a training in bfloat16 whose small updates would be lost.

    A bfloat16 number has 8 significant bits: an update below about 1/512 of a weight is rounded to
    nothing. Rounded up or down by chance, in proportion, updates are right on average.

    Args:
        trained: Dtype of the trained weights.
        dtype: Dtype of the frozen weights.
        factory: Makes the optimiser.

    Raises:
        ConfigError: The frozen weights have another dtype, or the optimiser rounds to the nearest.
    """
    if trained == "float32":
        return
    if dtype != torch.bfloat16:
        raise ConfigError(
            f"model.trained_dtype is bfloat16, but the frozen weights are {_name(dtype)}, and a "
            "layer can't mix the two. Add --model.dtype bfloat16."
        )
    optimizer = factory([make_probe_group(torch.zeros(2, 2, dtype=dtype))], 1e-3)
    if not rounds_stochastically(optimizer):
        raise ConfigError(explain_lost_updates(type(optimizer).__name__))


def seed_rounding(optimizer: Optimizer, seed: int, step: int) -> None:
    """Make what rounding draws in a step the same in all processes, and in a resumed run.

    Processes that hold the same weights would else round them differently and part for ever.

    Args:
        optimizer: The optimiser; for one that does not round stochastically, nothing is done.
        seed: Seed of the run, the same in all processes.
        step: Number of the step.
    """
    if rounds_stochastically(optimizer):
        torch.manual_seed(hash((seed, step)) % 2**63)


def check_resumed_dtype(ours: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse to go on with trained weights of another dtype than the run had.

    Args:
        ours: Name -> trained weight.
        found: Name -> trained weight of the checkpoint.

    Raises:
        ConfigError: A dtype is another.
    """
    for name, weight in ours.items():
        if found[name].dtype != weight.dtype:
            before, now = _name(found[name].dtype), _name(weight.dtype)
            raise ConfigError(
                f"The run was trained with trained weights in {before}, and here they are {now}: "
                f"it would not go on as it was. Set --model.trained_dtype {before}; to train "
                "otherwise from its weights, `lightning export` the model and fit from the "
                "exported folder."
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
