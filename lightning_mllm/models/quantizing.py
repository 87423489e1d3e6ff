"""Decides what of a checkpoint is quantised, before its weights are read."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.freeze import FreezePolicy
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.quantization import (
    BYTES_PER_WEIGHT,
    QuantizationPlan,
    Quantize,
    StoredWeight,
    put_stored_weights,
    weight_head,
)

_MIB = 2**20

logger = logging.getLogger(__name__)


def check_quantize_option(
    quantize: Quantize | None, *, sharded: bool, compiled: bool, placed: bool
) -> None:
    """Refuse options that do not go together with `model.quantize`.

    Args:
        quantize: The option; with None nothing is refused.
        sharded: Whether the strategy divides weights among processes.
        compiled: Whether the model is compiled.
        placed: Whether its layers lie on several devices.

    Raises:
        ConfigError: The model is sharded, compiled or placed on several devices.
    """
    if quantize is None:
        return
    if sharded:
        raise ConfigError(
            f"model.quantize {quantize} can't be sharded: quantised weights are bytes that belong "
            "together. Leave trainer.strategy out (auto or ddp hold the model on each device), or "
            "leave model.quantize out."
        )
    other = "model.compile" if compiled else "model.device_map" if placed else None
    if other is not None:
        raise ConfigError(
            f"model.quantize {quantize} was never tried with {other}. Leave one of them out."
        )


def plan_quantization(
    plain: Backbone, quantize: Quantize, policy: FreezePolicy, dtype: torch.dtype
) -> QuantizationPlan:
    """Return what is quantised: the linear layers of the LLM's layers, and nothing else.

    Args:
        plain: The model as its checkpoint holds it, which is of no more use afterwards.
        quantize: How it is quantised.
        policy: What is trained.
        dtype: Dtype of the weights that are not quantised.

    Raises:
        ConfigError: The checkpoint is quantised already, the policy trains what is quantised, or
            there is nothing to quantise.
    """
    if plain.quantized is not None:
        raise ConfigError(
            f"model.quantize is {quantize}, but the checkpoint is quantised already "
            f"({plain.quantized}). Leave model.quantize out, or choose the checkpoint that it was "
            "made from."
        )
    linears = find_quantized_linears(plain, quantize)
    stored: dict[str, StoredWeight] = {}
    for name, layer in linears.items():
        head = weight_head(layer.weight, dtype)
        stored[f"{name}.weight"] = StoredWeight(layer.weight.shape, head, quantize)
    every = [name for name, each in plain.model.named_modules() if isinstance(each, nn.Linear)]
    kept = [name for name in every if name not in linears]
    _report(plain, quantize, stored)
    put_stored_weights(plain.model, stored)
    with torch.random.fork_rng(devices=[]):  # adapters draw numbers
        policy.apply(plain)
    return QuantizationPlan(quantize, stored, kept)


def find_quantized_linears(plain: Backbone, quantize: Quantize) -> dict[str, nn.Linear]:
    """Return name -> layer of what is quantised of a model.

    Args:
        plain: The model, which may be without data.
        quantize: How it is quantised.

    Raises:
        ConfigError: There is nothing to quantise.
    """
    inside = {id(each) for each in nn.ModuleList(decoder_layers(plain)).modules()}
    found: dict[str, nn.Linear] = {}
    for name, module in plain.model.named_modules():
        # a subclass may do more than multiply
        is_plain = type(module) is nn.Linear and id(module) in inside
        if is_plain and plain.part_of(f"{name}.weight") is Part.LLM:
            found[name] = module
    if not found:
        raise ConfigError(
            f"model.quantize {quantize} finds no linear layer in the LLM of a "
            f"{type(plain.model).__name__}. Leave it out."
        )
    return found


def _report(plain: Backbone, quantize: Quantize, stored: Mapping[str, StoredWeight]) -> None:
    count = sum(each.shape.numel() for each in stored.values())
    total = sum(parameter.numel() for _, parameter in plain.parameters(Part.LLM))
    logger.info(
        "model.quantize %s: %d matrices of the LLM, %.0f %% of its weights, take about %.3g MiB.",
        quantize,
        len(stored),
        100 * count / total,
        count * BYTES_PER_WEIGHT[quantize] / _MIB,
    )
    layers = nn.ModuleList(decoder_layers(plain))
    if 2 * count < sum(parameter.numel() for parameter in layers.parameters()):
        logger.warning(
            "More than half of the weights in the LLM's layers are in no linear layer (experts, "
            "for example), so model.quantize %s leaves them as they are and saves little.",
            quantize,
        )
