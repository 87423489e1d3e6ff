"""The Fréchet distance of two normal distributions, from moments, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenMoments:
    """Moments of some tokens.

    Attributes:
        number: How many tokens.
        total: (width,), their sum.
        squares: (width, width), the sum of their outer products with themselves.
    """

    number: float
    total: Tensor
    squares: Tensor

    @property
    def mean(self) -> Tensor:
        """(width,)."""
        return self.total / self.number

    @property
    def covariance(self) -> Tensor:
        """(width, width), with N - 1 below."""
        mean = self.mean
        return (self.squares - self.number * torch.outer(mean, mean)) / max(self.number - 1, 1)


def frechet_distance(one: TokenMoments, other: TokenMoments) -> float:
    """Return |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^1/2) of means m and covariances S."""
    first, second = one.covariance, other.covariance
    apart = (one.mean - other.mean).square().sum()
    return float(apart + first.trace() + second.trace() - 2 * trace_of_root(first, second))


def trace_of_root(first: Tensor, second: Tensor) -> Tensor:
    """Return tr((S1 S2)^1/2) of two covariances, (width, width).

    S1 S2 has the eigenvalues of S2^1/2 S1 S2^1/2, which is symmetric: the roots of these are added
    up. Eigenvalues below 0, which rounding makes, count as 0.
    """
    root = matrix_root(second)
    product = root @ first @ root
    values: Tensor = torch.linalg.eigvalsh((product + product.T) / 2)
    return values.clamp(min=0).sqrt().sum()


def matrix_root(matrix: Tensor) -> Tensor:
    """Return the root of a covariance, (width, width), which is a covariance too."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
