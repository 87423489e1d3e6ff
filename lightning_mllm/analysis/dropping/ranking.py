"""Which visual tokens stay. All of it is in columns of a batch, (batch, sequence)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_mllm.analysis.dropping.drop import Drop
from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.store.seeds import numpy_generator

_DIGITS = 9  # (1 - 0.9) * 5 is 0.49999999999999994


def choose_kept(drop: Drop, visual: Tensor, scores: Tensor) -> Tensor:
    """Return which visual tokens stay, bool.

    Args:
        drop: How many stay, and at which end of the scores.
        visual: Where the visual tokens are, bool.
        scores: What they are ranked by; of equals the earlier ones stay.
    """
    counts = count_kept(drop, visual.sum(1, keepdim=True))
    if drop.choice == "stride":
        return visual & _choose_spaced(visual, counts)
    ranked = (-scores if drop.keep == "most" else scores).double()
    order = ranked.masked_fill(~visual, torch.inf).argsort(dim=1, stable=True)
    return visual & (order.argsort(dim=1) < counts)


def count_kept(drop: Drop, numbers: Tensor) -> Tensor:
    """Return how many of so many visual tokens stay."""
    return (numbers.double() * (1 - drop.share)).round(decimals=_DIGITS).round().long()


def drops_nothing(tokens: SampleTokens, drop: Drop) -> bool:
    """Return whether no token of any sample will be dropped, though a share of them should be."""
    numbers = tokens.perceptual.sum(1)
    return drop.share > 0 and bool((count_kept(drop, numbers) == numbers).all())


def draw_scores(tokens: SampleTokens, drop: Drop) -> Tensor:
    """Return random scores in the samples' own numbering, (samples, prompt)."""
    scores = torch.zeros(tokens.perceptual.shape, dtype=torch.float64)
    for row, (sample_id, visual) in enumerate(
        zip(tokens.sample_ids, tokens.perceptual.cpu(), strict=True)
    ):
        drawn = numpy_generator(drop.seed, f"{sample_id}/drop").random(int(visual.sum()))
        scores[row, visual] = torch.from_numpy(drawn)
    return scores.to(tokens.lengths.device)


def score_states(drop: Drop, visual: Tensor, hidden: Tensor) -> Tensor:
    """Return the norm of states, or their mean cosine with other visual tokens of their sample.

    Args:
        drop: Which of the two.
        visual: Where the visual tokens are, bool.
        hidden: (batch, sequence, width), the states.
    """
    states = hidden.detach().to(torch.promote_types(hidden.dtype, torch.float32))
    if drop.choice == "norm":
        norms: Tensor = states.norm(dim=-1)
        return norms
    directions = normalize(states, dim=-1) * visual[..., None]
    total = directions.sum(1, keepdim=True)
    others = (visual.sum(1, keepdim=True) - 1).clamp(min=1)
    return ((directions * total).sum(-1) - directions.square().sum(-1)) / others


def _choose_spaced(visual: Tensor, counts: Tensor) -> Tensor:
    """Return which tokens of a row are chosen so that a number of them is evenly spaced."""
    after = visual.cumsum(1)
    number = visual.sum(1, keepdim=True).clamp(min=1)
    return after * counts // number > (after - 1) * counts // number
