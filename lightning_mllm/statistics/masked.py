"""Statistics along the last dimension of what a mask keeps; NaN where it keeps nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of (..., n) values where a (..., n) mask is True, (...)."""
    return values.where(mask, 0.0).sum(-1) / mask.sum(-1)


def masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """Return the median; of an even number of values the mean of the middle two."""
    kept = values.where(mask, torch.nan)
    lower = kept.nanmedian(-1).values  # of the middle two torch takes the lower
    upper = -(-kept).nanmedian(-1).values
    return (lower + upper) / 2


def masked_max(values: Tensor, mask: Tensor) -> Tensor:
    """Return the largest value."""
    return _nan_where_empty(values.where(mask, -torch.inf).amax(-1), mask)


def masked_min(values: Tensor, mask: Tensor) -> Tensor:
    """Return the smallest value."""
    return _nan_where_empty(values.where(mask, torch.inf).amin(-1), mask)


def _nan_where_empty(values: Tensor, mask: Tensor) -> Tensor:
    return values.where(mask.any(-1), torch.nan)
