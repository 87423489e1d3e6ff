"""The matrices of the decoder's layers, which are what is pruned.

Embeddings, norms, the head, the projector and the vision tower are never pruned.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from torch.distributed.tensor import DTensor

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.layers import decoder_layers


class Matrix(NamedTuple):
    """The name of a linear layer.

    Attributes:
        layer: Number of the decoder layer that it is a part of.
        name: Name within that decoder layer, e.g. `self_attn.q_proj`.
    """

    layer: int
    name: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.name}"

    @classmethod
    def parse(cls, text: str) -> Matrix:
        """Return the matrix of a text like `3.self_attn.q_proj`."""
        layer, _, name = text.partition(".")
        return cls(int(layer), name)


def names_left_whole(backbone: Backbone) -> list[str]:
    """Return the names, within a layer, of matrices of no linear layer, such as experts."""
    found: dict[str, None] = {}
    for layer in decoder_layers(backbone):
        linear = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        for name, weight in layer.named_parameters():
            if weight.ndim > 1 and name.rpartition(".")[0] not in linear:
                found[name] = None
    return list(found)


def matrices(backbone: Backbone) -> dict[Matrix, nn.Linear]:
    """Return every linear layer of every decoder layer, in order.

    Raises:
        ConfigError: The LLM carries adapters, or its weights are quantised, offloaded or divided
            among processes.
    """
    if adapter := next(backbone.parameters(Part.LLM_LORA), None):
        raise ConfigError(
            f"The LLM carries LoRA adapters ({adapter[0]} is one), whose update would fill pruned "
            "weights again. Merge them first: `lightning export` writes the merged model, which "
            "can be pruned."
        )
    found: dict[Matrix, nn.Linear] = {}
    for index, layer in enumerate(decoder_layers(backbone)):
        before = len(found)
        for name, module in layer.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if isinstance(module.weight, DTensor):
                raise ConfigError(
                    "Each process has only a part of the weights that sub-networks are chosen from "
                    "(trainer.strategy fsdp2 with evaluation: sharded). Use evaluation: whole, or "
                    "another strategy."
                )
            if module.weight.device.type == "meta":
                raise ConfigError(
                    f"{name} of decoder layer {index} lies in the CPU's memory or on the disk, and "
                    "is copied each time the model runs: what is pruned would be lost. Place all "
                    "layers on GPUs with model.device_map, or load the model on one device."
                )
            if backbone.quantized is not None or not module.weight.is_floating_point():
                raise ConfigError(
                    f"{name} of decoder layer {index} has weights of {module.weight.dtype}: they "
                    "are quantised, and which of them are kept is not defined. Leave "
                    "model.quantize out, or choose a checkpoint that is not quantised."
                )
            found[Matrix(index, name)] = module
        if len(found) == before:
            raise ConfigError(
                f"Decoder layer {index}, a {type(layer).__name__}, has no nn.Linear, so nothing "
                "of it can be pruned. Choose a model with linear layers."
            )
    return found
