"""Which tokens skip something, in each sample's own numbering (see `forward.sample_tokens`)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.store.seeds import numpy_generator

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996


def qualified_tokens(tokens: SampleTokens, skip: Skip) -> Tensor:
    """Return among which tokens of the prompts a skip chooses, (batch, prompt) bool."""
    if skip.phase == "decode":
        return torch.zeros_like(tokens.perceptual)
    if skip.tokens == "all":
        return tokens.prompt
    return tokens.perceptual if skip.tokens == "perceptual" else tokens.prompt & ~tokens.perceptual


def choose_in_prompts(tokens: SampleTokens, skip: Skip, layer: int) -> Tensor:
    """Return which tokens of the prompts are chosen, at random or evenly, (batch, prompt) bool."""
    qualified = qualified_tokens(tokens, skip)
    if skip.choice == "strided":
        return qualified & _choose_evenly(qualified.cumsum(1) - 1, skip.share)
    draws = _draw_all(tokens, skip, layer, qualified.shape[1], "prompt")
    return choose_lowest(draws.to(qualified.device), qualified, skip.share)


def choose_after_prompts(tokens: SampleTokens, skip: Skip, layer: int, count: int) -> Tensor:
    """Return which of the first tokens after the prompts are chosen, (batch, count) bool."""
    device = tokens.lengths.device
    if skip.choice == "strided":
        evenly = _choose_evenly(torch.arange(count, device=device), skip.share)
        return evenly.expand(len(tokens), -1)
    return _draw_all(tokens, skip, layer, count, "behind").to(device) < skip.share


def choose_lowest(values: Tensor, qualified: Tensor, share: float) -> Tensor:
    """Return which values are the lowest of those that qualify, (rows, numbers) bool.

    Of n values of a row that qualify floor(share * n) are chosen.
    """
    counts = (qualified.sum(1, keepdim=True).double() * share + _ROUNDING).floor()
    ordered = values.double().masked_fill(~qualified, torch.inf).argsort(dim=1, stable=True)
    return qualified & (ordered.argsort(dim=1) < counts)


def chooses_nothing(tokens: SampleTokens, skip: Skip) -> bool:
    """Return whether no token of any sample will be skipped, though a share of them should be."""
    some_after_prompts = skip.phase != "prefill" and skip.tokens != "perceptual"
    if not skip.share or some_after_prompts:
        return False
    due = qualified_tokens(tokens, skip).sum(1).double() * skip.share + _ROUNDING
    return not bool((due >= 1).any())


def _choose_evenly(index: Tensor, share: float) -> Tensor:
    """Return whether each of these, counted from 0, is skipped.

    Of the first n floor(share * n) are skipped, evenly spaced.
    """
    up_to_before = (index.double() * share + _ROUNDING).floor()
    up_to_here = ((index + 1).double() * share + _ROUNDING).floor()
    return up_to_here > up_to_before


def _draw_all(tokens: SampleTokens, skip: Skip, layer: int, count: int, part: str) -> Tensor:
    """Return numbers between 0 and 1, (batch, count), for a part of each sample."""
    draws = [_draw(skip, sample_id, layer, count, part) for sample_id in tokens.sample_ids]
    return torch.from_numpy(np.stack(draws))


def _draw(skip: Skip, sample_id: str, layer: int, count: int, part: str) -> NDArray[np.float64]:
    """Return numbers between 0 and 1 that belong to a sample.

    A longer draw begins with the numbers of a shorter one.
    """
    key = f"{sample_id}/{part}/{layer if skip.per_layer else ''}"
    return numpy_generator(skip.seed, key).random(count)
