"""The LLM's layers, and what kind of attention and masks they take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.models.backbone import Backbone


def decoder_layers(backbone: Backbone) -> list[nn.Module]:
    """Return the LLM's layers, in order."""
    layers: Any = backbone.decoder.layers
    return list(layers)


def attention_of(backbone: Backbone) -> str:
    """Return the name of the LLM's attention implementation."""
    return str(backbone.model.get_decoder().config._attn_implementation)


def mask_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of an additive mask: that of the queries, under autocast too."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def hidden_value(dtype: torch.dtype) -> float:
    """Return what an additive mask holds where a key is hidden: lower than any score, and finite in float32 too.

    Eager attention has its softmax in float32; of a padding row, from which everything is hidden, it would make NaN.
    """
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
