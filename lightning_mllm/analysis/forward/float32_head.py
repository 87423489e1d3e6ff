"""The output head in float32, where two logits differ that half precision would round to one.

In half precision logits stand on a grid: in bfloat16, between 16 and 32, its step is 0.125, which
is 13 % of a probability. So the product of a plain linear head is computed in float32 here, under
autocast too. Another head, such as one with an adapter, is used as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lightning_mllm.families import finish_logits
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_output

LOGITS = 1 << 23  # that exist at once, where states go through the head some at a time
_WORDS = 8192  # rows of the head that are in float32 at once


def head_vocabulary_size(head: nn.Module) -> int:
    """Return for how many tokens a head has logits."""
    weight: Tensor = head.weight  # type: ignore[assignment]  # of a linear layer
    return len(weight)


def head_states_at_once(head: nn.Module) -> int:
    """Return how many states to send through a head at a time."""
    return max(1, LOGITS // head_vocabulary_size(head))


def next_token_head_logits(backbone: Backbone, states: Tensor) -> Tensor:
    """Return the logits of what leaves a layer, (..., width): after the final norm and the head."""
    norm = backbone.final_norm
    return model_logits(backbone, norm(states))


def model_logits(backbone: Backbone, normed: Tensor) -> Tensor:
    """Return the logits of normed states, (..., width), as the model's own forward, in float32."""
    return finish_logits(backbone.model.config, head_logits(backbone.lm_head, normed))


def head_logits(head: nn.Module, normed: Tensor) -> Tensor:
    """Return the head's product with states, in float32, or in float64 for a model in float64.

    What the model does to it afterwards, such as a soft cap, is `families.finish_logits`.

    Args:
        head: width -> vocabulary.
        normed: (..., width), as they leave the final norm.

    Returns:
        (..., vocabulary).
    """
    logits: Tensor = _product(head, normed) if type(head) is nn.Linear else head(normed)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def head_in_float32(head: nn.Module) -> Iterator[None]:
    """Let a plain linear head return these logits to the model that calls it."""
    if type(head) is not nn.Linear:
        yield
        return
    with hook_output(head, partial(_product, head)):
        yield


def _product(head: nn.Linear, normed: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(normed.dtype, head.weight.dtype), torch.float32)
    with torch.autocast(normed.device.type, enabled=False):
        states = normed.to(dtype)
        logits = torch.cat(
            [states @ words.to(dtype).T for words in head.weight.split(_WORDS)], dim=-1
        )
        return logits if head.bias is None else logits + head.bias.to(dtype)
