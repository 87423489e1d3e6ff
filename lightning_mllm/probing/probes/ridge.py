"""Ridge regressions, solved from sums over samples: memory does not grow with their number.

With features x and outputs y, both around their means over the training samples, a regression
minimises the mean of |y - W x|^2 plus penalty * |W|^2, where each feature is divided by its
standard deviation. The penalty is the one with the least error on samples that are held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

# relative to the variance of a feature
PENALTIES = (1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_CONSTANT = 1e-12  # variance, relative to the mean square, of a feature that is constant


@dataclass(frozen=True, eq=False)
class RidgeSums:
    """Sums over samples, in float64.

    Attributes:
        n: Number of samples.
        x: (width,), sum of the features.
        y: (outputs,), sum of the outputs.
        xx: (width, width), sum of the products of features.
        xy: (width, outputs), sum of the products of features and outputs.
        yy: Sum of the squared lengths of the outputs.
    """

    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> RidgeSums:
        """Sum features, (samples, width), and outputs, (samples, outputs)."""
        x, y = x.double(), y.double()
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, float(y.square().sum()))

    def __add__(self, other: RidgeSums) -> RidgeSums:
        """Return the sums over the samples of both."""
        return RidgeSums(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )


@dataclass(frozen=True, eq=False)
class RidgeMap:
    """A regression that is solved.

    Attributes:
        weight: (width, outputs).
        bias: (outputs,).
        penalty: The penalty that it was solved with.
    """

    weight: Tensor
    bias: Tensor
    penalty: float

    def predict(self, x: Tensor) -> Tensor:
        """Return outputs, (samples, outputs) float64, of (samples, width) features."""
        return x.double() @ self.weight + self.bias

    def error(self, sums: RidgeSums) -> float:
        """Return the sum of the squared errors over the samples of some sums."""
        weight, bias = self.weight, self.bias
        products = (weight * (sums.xx @ weight)).sum() - 2 * (weight * sums.xy).sum()
        offsets = 2 * bias @ (weight.T @ sums.x - sums.y) + sums.n * bias @ bias
        return float(sums.yy + products + offsets)


def solve_ridge(sums: RidgeSums, penalty: float) -> RidgeMap:
    """Solve the regression of the samples of some sums with a penalty."""
    x, y = sums.x / sums.n, sums.y / sums.n
    squares = sums.xx.diagonal() / sums.n
    variance = squares - x.square()
    scale = torch.where(variance > _CONSTANT * squares, variance.clamp(min=0).sqrt(), torch.inf)
    covariance = (sums.xx / sums.n - x.outer(x)) / scale.outer(scale)
    covariance.diagonal().add_(penalty)
    crossed = (sums.xy / sums.n - x.outer(y)) / scale[:, None]
    weight = torch.cholesky_solve(crossed, torch.linalg.cholesky(covariance)) / scale[:, None]
    return RidgeMap(weight, y - x @ weight, penalty)


def choose_ridge(folds: Sequence[RidgeSums], chosen_on: int | None = None) -> RidgeMap:
    """Solve the regression of all folds, with the penalty that is best on folds that are held out.

    Args:
        folds: Sums of groups of samples, two or more; samples of one picture are in one of them.
        chosen_on: On how many folds the penalty is chosen; by default on each of them in turn.
    """
    errors = dict.fromkeys(PENALTIES, 0.0)
    for held in range(len(folds) if chosen_on is None else chosen_on):
        kept = reduce(add, [sums for number, sums in enumerate(folds) if number != held])
        for penalty in PENALTIES:
            errors[penalty] += solve_ridge(kept, penalty).error(folds[held])
    return solve_ridge(reduce(add, folds), min(errors, key=errors.__getitem__))
