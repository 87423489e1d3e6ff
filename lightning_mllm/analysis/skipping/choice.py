"""Which tokens of a sample skip something, said in the sample's own numbering: 0 is its first token that is real.

So neither the side of the padding nor the other samples of a batch matter, nor whether a sample goes through the model
at once or token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_mllm.analysis.skipping.spec import Skip
from lightning_mllm.store.seeds import numpy_generator
from lightning_mllm.types import MultimodalBatch, Segment

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996


@dataclass(frozen=True)
class SampleTokens:
    """The prompts of some samples, in their own numbering.

    Attributes:
        sample_ids: Theirs.
        perceptual: (batch, prompt) bool; prompt is the longest one's length.
        lengths: (batch,) tokens of each prompt, LAST included.
    """

    sample_ids: tuple[str, ...]
    perceptual: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, batch: MultimodalBatch) -> SampleTokens:
        """Find them in a batch, with or without answers, padded on either side."""
        real = batch.attention_mask.bool()
        behind = batch.spans[Segment.LAST].cumsum(1) - batch.spans[Segment.LAST].long()  # 1 behind LAST
        lengths = (real & (behind == 0)).sum(1)
        places = torch.arange(int(lengths.max()), device=real.device)
        columns = real.int().argmax(1, keepdim=True) + places  # of each token in the batch
        perceptual = batch.spans[Segment.IMAGE].gather(1, columns.clamp(max=real.shape[1] - 1))
        return cls(batch.sample_ids, perceptual & (places < lengths[:, None]), lengths)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sample_ids)

    @property
    def prompt(self) -> Tensor:
        """(batch, prompt) bool: where there is a token at all."""
        return torch.arange(self.perceptual.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def to(self, device: torch.device) -> SampleTokens:
        """Move all tensors."""
        return SampleTokens(self.sample_ids, self.perceptual.to(device), self.lengths.to(device))

    def take(self, rows: Sequence[int]) -> SampleTokens:
        """Return some of the samples."""
        ids = tuple(self.sample_ids[row] for row in rows)
        return SampleTokens(ids, self.perceptual[list(rows)], self.lengths[list(rows)])

    def qualified(self, skip: Skip) -> Tensor:
        """Return which tokens of the prompts a skip is about, (batch, prompt) bool."""
        if skip.phase == "decode":
            return torch.zeros_like(self.perceptual)
        if skip.tokens == "all":
            return self.prompt
        return self.perceptual if skip.tokens == "perceptual" else self.prompt & ~self.perceptual


def chosen_in_prompts(tokens: SampleTokens, skip: Skip, layer: int) -> Tensor:
    """Return which tokens of the prompts are chosen at random or evenly spaced, (batch, prompt) bool."""
    qualified = tokens.qualified(skip)
    if skip.choice == "strided":
        return qualified & _strided(qualified.cumsum(1) - 1, skip.share)
    device, width = qualified.device, qualified.shape[1]
    draws = [_draws(skip, sample_id, layer, width, "prompt") for sample_id in tokens.sample_ids]
    return lowest(torch.from_numpy(np.stack(draws)).to(device), qualified, skip.share)


def chosen_behind_prompts(tokens: SampleTokens, skip: Skip, layer: int, count: int) -> Tensor:
    """Return which of the first tokens behind the prompts are chosen, (batch, count) bool."""
    device = tokens.lengths.device
    if skip.choice == "strided":
        return _strided(torch.arange(count, device=device), skip.share).expand(len(tokens), -1)
    draws = [_draws(skip, sample_id, layer, count, "behind") for sample_id in tokens.sample_ids]
    return torch.from_numpy(np.stack(draws)).to(device) < skip.share


def lowest(values: Tensor, qualified: Tensor, share: float) -> Tensor:
    """Return which are the lowest of those that qualify, floor(share * n) of n in each row, (rows, numbers) bool."""
    counts = (qualified.sum(1, keepdim=True).double() * share + _ROUNDING).floor()
    ordered = values.double().masked_fill(~qualified, torch.inf).argsort(dim=1, stable=True)
    return qualified & (ordered.argsort(dim=1) < counts)


def skips_nothing(tokens: SampleTokens, skip: Skip) -> bool:
    """Return whether no token of any sample will be skipped, though a share of them should be."""
    if not skip.share or (skip.phase != "prefill" and skip.tokens != "perceptual"):  # behind the prompt some may be
        return False
    return not bool((tokens.qualified(skip).sum(1).double() * skip.share + _ROUNDING >= 1).any())


def _strided(index: Tensor, share: float) -> Tensor:
    """Return whether each of these, counted from 0, is skipped: of the first n floor(share * n), evenly spaced."""
    before, behind = ((each.double() * share + _ROUNDING).floor() for each in (index, index + 1))
    return behind > before


def _draws(skip: Skip, sample_id: str, layer: int, count: int, part: str) -> NDArray[np.float64]:
    """Return numbers between 0 and 1 that belong to a sample; more of them begin with the same ones."""
    key = f"{sample_id}/{part}/{layer if skip.per_layer else ''}"
    return numpy_generator(skip.seed, key).random(count)
