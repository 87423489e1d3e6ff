"""Weights of 8 and 4 bits: the one file that knows bitsandbytes, and what its layers stand for.

`nf4` is QLoRA's 4-bit NormalFloat with doubly quantised scales (Dettmers et al., NeurIPS 2023),
`int8` is LLM.int8() (Dettmers et al., NeurIPS 2022).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils.import_utils import is_bitsandbytes_available

from lightning_mllm.errors import ConfigError

Quantize = Literal["nf4", "int8"]

BYTES_PER_WEIGHT: Final[Mapping[Quantize, float]] = {
    # 4 bits, an 8-bit scale for 64 of them, and a 32-bit scale for 256 of those
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "int8": 1.0,  # the 32-bit scale of a row of a thousand and more is left out
}
_HEAD = 16  # values of a tensor that a fingerprint looks at


@dataclass(frozen=True)
class StoredWeight:
    """What the checkpoint holds where a layer has a quantised weight.

    Attributes:
        shape: Shape of the weight as numbers; packed it has another one.
        head: First values of the weight, as `weight_head` returns them.
        kind: `nf4`, `fp4` or `int8`; empty once the weight was turned into numbers again.
    """

    shape: torch.Size
    head: Tensor
    kind: str


@dataclass(frozen=True)
class QuantizationPlan:
    """What of a checkpoint is quantised.

    Attributes:
        kind: How.
        stored: Name of each weight that is quantised -> what the checkpoint holds for it.
        kept: Names of the linear layers that are left as they are.
    """

    kind: Quantize
    stored: Mapping[str, StoredWeight]
    kept: Sequence[str]


def weight_head(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the first values of a weight as bits, (16,).

    They are the same for float32 and bfloat16; float16 may round values to others.

    Args:
        weight: The weight.
        dtype: Dtype that it is loaded in elsewhere; by default its own.
    """
    values = weight.detach().flatten()[:_HEAD].to("cpu", dtype)
    return values.to(torch.bfloat16).view(torch.int16)


def stored_weights(model: nn.Module) -> dict[str, StoredWeight]:
    """Return the name of each weight that is held quantised -> what the checkpoint has for it."""
    found: dict[str, StoredWeight] = {}
    for name, module in model.named_modules():
        if (stored := vars(module).get("stored_weight")) is not None:
            found[f"{name}.weight"] = stored
    return found


def put_stored_weights(model: nn.Module, stored: Mapping[str, StoredWeight]) -> None:
    """Note at each layer of a model what the checkpoint holds for its weight."""
    for name, each in stored.items():
        vars(model.get_submodule(name.removesuffix(".weight")))["stored_weight"] = each


def quantized_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters, biases included, of layers with a quantised weight."""
    names = set()
    for weight in stored_weights(model):
        layer = weight.removesuffix("weight")
        own = model.get_submodule(layer.removesuffix(".")).named_parameters(recurse=False)
        names |= {f"{layer}{name}" for name, _ in own}
    return frozenset(names)


def check_no_quantized_trained(model: nn.Module, trained: frozenset[str], policy: str) -> None:
    """Refuse to train what is quantised.

    Args:
        model: The model.
        trained: Names of the parameters that a policy trains.
        policy: The policy, as text.

    Raises:
        ConfigError: One of them belongs to a layer that is quantised.
    """
    if wrong := sorted(trained & quantized_parameters(model)):
        raise ConfigError(
            f"model.policy {policy} trains {len(wrong)} tensors of layers that are quantised, the "
            f"first is {wrong[0]}; 4- and 8-bit weights can't be trained. Choose a policy that "
            "leaves them frozen, e.g. ProjectorOnly or Lora, or weights that are not quantised "
            "(leave model.quantize out). To use a model quantised that was trained so, `lightning "
            "export` it and set model.checkpoint to the export."
        )


def check_quantization_available(needing: str) -> None:
    """Refuse to go on without bitsandbytes.

    Args:
        needing: What needs it, as the beginning of the sentence.

    Raises:
        ConfigError: It is not installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns in every layer's forward
    if not is_bitsandbytes_available():
        raise ConfigError(
            f"{needing} needs the package bitsandbytes, which is not installed: pip install "
            "'lightning-mllm[quantize]'."
        )


def quantization_config(plan: QuantizationPlan, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return with what transformers quantises a checkpoint while it reads it.

    Args:
        plan: What is quantised.
        dtype: Dtype that 4-bit layers compute in.
    """
    # a pattern; the last part of a name alone would match nothing, in silence
    kept = "|".join(map(re.escape, plan.kept))
    return BitsAndBytesConfig(
        load_in_4bit=plan.kind == "nf4",
        load_in_8bit=plan.kind == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[f"(?:{kept})$"],
    )


def kind_of_quantized_checkpoint(config: Any) -> str | None:
    """Return `nf4`, `fp4` or `int8` for a config whose checkpoint is quantised, else None."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    options = given if isinstance(given, dict) else given.to_dict()
    if options.get("load_in_8bit"):
        return "int8"
    kind: str = options.get("bnb_4bit_quant_type", "fp4")
    return kind


def settle_quantized_layers(
    model: PreTrainedModel, dtype: torch.dtype, stored: Mapping[str, StoredWeight] | None = None
) -> None:
    """Note what the checkpoint holds for each quantised weight, and keep the weights as they are.

    bitsandbytes would repack 4-bit weights in place at the first forward on a CPU that computes
    faster so, and then give other results while evaluating than while training.

    Args:
        model: A model that was just loaded.
        dtype: Dtype that 4-bit layers compute in.
        stored: What an unquantised checkpoint holds; by default what is there is what it holds.
    """
    found: dict[str, StoredWeight] = {}
    for name, module in _quantized_layers(model):
        weight: Any = module.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            shape, kind = weight.shape, "int8"
        else:
            shape, kind = torch.Size(state.shape), str(state.quant_type)
            module.compute_dtype = dtype
            module.compute_type_is_set = True
            module.support_avx512bf16_for_cpu = False
        own = f"{name}.weight"
        found[own] = (
            StoredWeight(shape, weight_head(weight), kind) if stored is None else stored[own]
        )
    put_stored_weights(model, found)


def dequantize_model(model: PreTrainedModel) -> None:
    """Turn the quantised weights of a model that was just loaded into numbers, in place.

    Its fingerprint stays that of the quantised checkpoint.
    """
    stored = stored_weights(model)
    model.dequantize(model.dtype)
    put_stored_weights(model, {name: replace(each, kind="") for name, each in stored.items()})


def _quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt  # noqa: PLC0415  # an extra

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            yield name, module
