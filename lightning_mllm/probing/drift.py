"""How far features and weights have moved: the same samples, before and after training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lightning_mllm.errors import DataError


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Return the linear centred kernel alignment (Kornblith et al., ICML 2019, equation 2).

    It is 1 for features that differ by an orthogonal map and a scale, and does not need equal
    widths. It is computed in float64, from Gram matrices over samples or over features, whichever
    are smaller.

    Args:
        one: (samples, width).
        other: (samples, another width), of the same samples in the same order.

    Raises:
        DataError: The numbers of samples differ, or one of the sets is constant.
    """
    if len(one) != len(other):
        raise DataError(f"CKA compares the same samples; found {len(one)} and {len(other)}.")
    x, y = (features.double() - features.double().mean(dim=0) for features in (one, other))
    if not (x.any() and y.any()):
        raise DataError("CKA is not defined for features that are the same for all samples.")
    if len(x) < max(x.shape[1], y.shape[1]):
        gram_x, gram_y = x @ x.T, y @ y.T
        return float((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm()))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def mean_cosine(one: Tensor, other: Tensor) -> float:
    """Return the mean over samples of the cosine between features, (samples, width) each."""
    return float(cosine_similarity(one.double(), other.double(), dim=1).mean())


def relative_change(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Return ||after - before|| / ||before|| over all weights (Frobenius norms, float64)."""
    moved, size = [], []  # sums of squares per tensor
    for name, tensor in before.items():
        moved.append((after[name].double() - tensor.double()).square().sum())
        size.append(tensor.double().square().sum())
    return float((torch.stack(moved).sum() / torch.stack(size).sum()).sqrt())
