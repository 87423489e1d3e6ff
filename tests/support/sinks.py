"""A tiny LLaVA in which attention rests on one token, as it does in large models."""

from __future__ import annotations

from typing import Any

import torch

from lightning_mllm.models.backbone import Backbone

_MARK, _MASSIVE = 0, 1  # dimensions: one that all tokens have, and one that only the sink has
_SIZE = 100.0  # of the massive dimension, many times all others together


@torch.no_grad()
def plant_sink(backbone: Backbone, token: int) -> None:
    """Give one word a massive state, and make all heads of the first layer look for it.

    Queries come from a dimension in which all tokens are 1, keys from the massive one; both lie in
    the slowest of the rotated pairs, so that the distance hardly matters.
    """
    decoder: Any = backbone.decoder
    words = decoder.embed_tokens.weight
    words[:, [_MARK, _MASSIVE]] = torch.tensor([1.0, 0.0])
    words[token, _MASSIVE] = _SIZE
    linear: Any = list(backbone.projector.modules())[-1]
    linear.weight[[_MARK, _MASSIVE]] = 0
    linear.bias[[_MARK, _MASSIVE]] = torch.tensor([1.0, 0.0])
    attention = decoder.layers[0].self_attn
    slowest = attention.head_dim // 2 - 1
    attention.q_proj.weight[slowest :: attention.head_dim, _MARK] = 50.0
    attention.k_proj.weight[slowest :: attention.head_dim, _MASSIVE] = 50.0
