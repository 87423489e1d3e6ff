"""Cosine similarity of two sets of tokens, in the modes of Shukor and Cord (arXiv 2405.16700).

`avg` averages the tokens of a set first and compares the means; all other modes compare each token
of one set with each token of the other. `max_mean` takes, for each token of the first set, the most
similar one of the second, and averages these similarities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mllm.alignment_names import MODES
from lightning_mllm.statistics.masked import masked_max, masked_mean, masked_median, masked_min

SAME_POSITION_MODES = ("diag_mean", "diag_median", "diag_max")

TINY = 1e-30  # length of what counts as no vector: its similarity is 0


def normalise_for_similarity(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return (..., width) states divided by their lengths, and the lengths, in float64."""
    exact = states.double()
    lengths = exact.norm(dim=-1)
    return exact / lengths.clamp(min=TINY)[..., None], lengths


def make_similarity_vectors(units: Tensor, lengths: Tensor, kept: Tensor) -> Tensor:
    """Return vectors of sets of tokens; similarities of two sets are inner products of theirs.

    For `avg` it is the mean of the tokens, divided by its length; for `mean` the mean of the
    tokens, each divided by its length.

    Args:
        units: (batch, sequence, width), from `normalise_for_similarity`.
        lengths: (batch, sequence), from `normalise_for_similarity`.
        kept: (batch, variants, sets, sequence) bool, the tokens of the sets; none is empty.

    Returns:
        (batch, variants, vector modes, sets, width).
    """
    shares = kept.double() / kept.sum(-1, keepdim=True)
    weights = torch.stack([shares * lengths[:, None, None], shares], dim=2)
    vectors = (weights.flatten(1, 3) @ units).unflatten(1, weights.shape[1:4])
    return torch.stack([normalise_for_similarity(vectors[:, :, 0])[0], vectors[:, :, 1]], dim=2)


def token_similarity(
    units: Tensor, others: Tensor, kept: Tensor, kept_others: Tensor, *, either_way: bool = False
) -> Tensor:
    """Return the similarity of the tokens of two sets in each of `TOKEN_MODES`.

    Args:
        units: (batch, tokens, width), from `normalise_for_similarity`.
        others: (batch, other tokens, width).
        kept: (batch, variants, tokens) bool, which are in the set; none is empty.
        kept_others: (batch, variants, other tokens) bool.
        either_way: Whether `max_mean` is averaged over both orders of the sets.

    Returns:
        (batch, variants, token modes).
    """
    both = kept[..., None] & kept_others[..., None, :]
    cosines = (units @ others.mT)[:, None].expand(both.shape)
    all_pairs, there = cosines.flatten(2), both.flatten(2)
    median = masked_median(all_pairs, there)
    most, least = masked_max(all_pairs, there), masked_min(all_pairs, there)
    there_only = cosines.where(both, -torch.inf)
    best = masked_mean(there_only.amax(-1), kept)
    if either_way:
        best = (best + masked_mean(there_only.amax(-2), kept_others)) / 2
    return torch.stack([median, most, least, best], dim=-1)


def same_position_similarity(cosines: Tensor, kept: Tensor) -> list[Tensor]:
    """Return the similarity of tokens at the same positions, in each of `SAME_POSITION_MODES`.

    Args:
        cosines: (..., sequence).
        kept: (..., sequence) bool.
    """
    return [masked_mean(cosines, kept), masked_median(cosines, kept), masked_max(cosines, kept)]


def positions_for_similarity(mask: Tensor) -> Tensor:
    """Return the positions that a mask keeps, (batch, most of a sample), and others after them.

    Args:
        mask: (batch, sequence) bool, which positions are kept.
    """
    return mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]


def gather_for_similarity(values: Tensor, positions: Tensor) -> Tensor:
    """Return (batch, sequence, ...) values at (batch, n) positions, (batch, n, ...)."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, positions]


def similarity_measure_names(prefix: str, modes: Sequence[str] = MODES) -> tuple[str, ...]:
    """Return the names of a similarity's measures."""
    return tuple(f"{prefix} {mode}" for mode in modes)


def name_similarity_measures(
    prefix: str, values: Tensor, modes: Sequence[str] = MODES
) -> dict[str, Tensor]:
    """Return the names of measures -> their values, the modes along the last axis."""
    return dict(zip(similarity_measure_names(prefix, modes), values.unbind(-1), strict=True))
