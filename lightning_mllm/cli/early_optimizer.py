"""Optimisers that a fit would refuse, by their name alone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from lightning_mllm.cli.given import Given
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.optimisation.lost_updates import explain_lost_updates

_EXTRAS = {"torchao": "torchao", "bitsandbytes": "quantize"}  # package -> the extra that brings it
_OFFLOAD = "lightning_mllm.models.optimisation.offload.OffloadedAdamW"


def check_early_optimizer(given: Sequence[Given]) -> None:
    """Refuse an optimiser whose package is missing, or that can't have the trained weights.

    Raises:
        ConfigError: There is one.
    """
    dtype, optimizer, where = "float32", "torch.optim.AdamW", ""
    for each in given:
        if each.option == "model.trained_dtype":
            dtype = str(each.value)
        if each.option == "model.optimizer" and isinstance(each.value, str):
            optimizer, where = each.value, each.where
    package, name = optimizer.partition(".")[0], optimizer.rpartition(".")[2]
    if optimizer == _OFFLOAD:
        package = "torchao"
    if package in _EXTRAS and find_spec(package) is None:
        raise ConfigError(
            f"{where}: {name} needs {package}, which is not installed: "
            f'pip install "lightning-mllm[{_EXTRAS[package]}]".'
        )
    if name == "CPUOffloadOptimizer":
        raise ConfigError(
            f"{where}: torchao's {name} misses gradients that are clipped or averaged over "
            f"processes. Use {_OFFLOAD}, which is made of it."
        )
    if dtype == "bfloat16" and (package in ("torch", "bitsandbytes") or name == "MuonAdamW"):
        raise ConfigError(explain_lost_updates(name))
