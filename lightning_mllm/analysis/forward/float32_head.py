"""The output head in float32, so that what half precision rounds away between two logits can still be read.

In half precision logits stand on a grid: in bfloat16, between 16 and 32, of 0.125, which is 13 % of a probability. So
of a plain linear head the product itself is computed in float32 here, under autocast too. What another head returns,
such as one with an adapter, is as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from lightning_mllm.models.hooks import output_of

_WORDS = 8192  # rows of the head that are in float32 at once


def head_logits(head: nn.Module, normed: Tensor) -> Tensor:
    """Return the logits of states, in float32, or in float64 for a model in float64.

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
    """Let a plain linear head return the same to the model that calls it, which may go on with it."""
    if type(head) is not nn.Linear:
        yield
        return
    with output_of(head, partial(_product, head)):
        yield


def _product(head: nn.Linear, normed: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(normed.dtype, head.weight.dtype), torch.float32)
    with torch.autocast(normed.device.type, enabled=False):
        states = normed.to(dtype)
        logits = torch.cat([states @ words.to(dtype).T for words in head.weight.split(_WORDS)], dim=-1)
        return logits if head.bias is None else logits + head.bias.to(dtype)
