"""Random weights with which an untrained model passes on what it sees."""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_mllm.models.tiny.size import TinySize

# the last matrix of an attention or an MLP, not that of a projector inside a tower
_ADDS_TO_THE_RESIDUAL = re.compile(
    r"(?!.*merger).*(out_proj|o_proj|attn\.proj|projection_layer|fc2|lin2|down_proj)"
    r"(\.linear)?(\.weight)?"
)
_LLM = ("language_model", "text_model")
_EMBEDDINGS = ("embed_tokens", "visual_embeddings_table")
_POSITIONS = ("position_embedding", "pos_embed")


@torch.no_grad()
def initialise(model: PreTrainedModel, size: TinySize, to_train: bool) -> None:
    """Scale the weights so that an untrained model passes on what it sees.

    The usual standard deviation of 0.02 is meant for thousands of channels. Here a patch's position
    would vanish beside its content, and all logits would stay near 0, whatever the input. So
    weights have a variance of 1 / fan-in and embeddings one of 1; an embedding that is the head,
    too, is a weight. To learn to see, a tower does better with weaker positions and residual
    branches.
    """
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            std = _fan_in(name, parameter) ** -0.5
            if any(kind in name for kind in _EMBEDDINGS):
                std = parameter.shape[-1] ** -0.5 if tied else 1.0
            elif any(kind in name for kind in _POSITIONS):
                std = 0.1 if to_train else 1.0
            elif to_train and _ADDS_TO_THE_RESIDUAL.fullmatch(name):
                is_llm = any(part in name for part in _LLM)
                layers = size.text_layers if is_llm else size.vision_layers
                std *= (2 * layers) ** -0.5
            parameter.normal_(std=std)


def _fan_in(name: str, parameter: nn.Parameter) -> int:
    if "experts." in name and parameter.ndim == 3:  # (experts, out, in)
        return parameter.shape[-1]
    if "mm_input_projection_weight" in name:  # (in, out)
        return parameter.shape[0]
    return parameter[0].numel()
