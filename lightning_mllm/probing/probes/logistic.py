"""Multinomial logistic regressions with an L2 penalty, several at once, each to a given tolerance.

With logit_ic = <z_i, W_c> + b_c, a regression minimises

    sum_i w_i (log sum_c exp(logit_ic) - logit_i,label(i)) + penalty / 2 * ||W||^2,

with weights w_i of the samples that add up to 1; there is no penalty on the biases b. This is
convex, and strictly convex in W: the minimum does not depend on the start or on the order of the
samples. It is found by L-BFGS, preconditioned with the upper bound of the curvature (Boehning,
1992), which is diagonal on the principal axes of the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# length of the gradient at convergence; with features of mean squared length 1 it starts below 2
TOLERANCE = 1e-5
_MEMORY = 6  # pairs of steps and changes of the gradient that L-BFGS keeps
_DECREASE = 1e-4  # least decrease of the loss, relative to what the slope predicts (Armijo)
_HALVINGS = 30  # at most, of a step's length
_ROUNDING = 16  # in units of a loss's precision: the smallest decrease that rounding does not hide
_RANK = 1e-5  # singular values below this, relative to the largest, are rounding errors


class LogisticAxes(NamedTuple):
    """Sets of features on their principal axes; a regression is the same there, up to a rotation.

    Attributes:
        train: (sets, samples, axes + 1), scaled to a mean squared length of 1; the last column is
            1, for the biases.
        test: (sets, test samples, axes + 1), scaled as train is.
    """

    train: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class LogisticSolution:
    """Solved regressions, K on each set of features.

    Attributes:
        weights: (sets, axes + 1, K, classes); the last row holds the biases.
        gradients: (sets, K), length of the gradient of the loss with penalty.
        iterations: (sets, K), number of steps.
    """

    weights: Tensor
    gradients: Tensor
    iterations: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return (sets, samples, K, classes)."""
        return _logits(features, self.weights)


def logistic_axes(train: Tensor, test: Tensor) -> LogisticAxes:
    """Rotate features, (sets, samples, width) of train and test, onto the principal axes of train.

    The mean of train is subtracted from both; the biases compensate for that.
    """
    mean = train.mean(dim=1, keepdim=True)
    train, test = train - mean, test - mean
    # with fewer samples than features, the axes are combinations of samples
    if train.shape[1] <= train.shape[2]:
        values, vectors = torch.linalg.eigh(train @ train.mT)
        vectors = train.mT @ (vectors * _inverse_root(values)[:, None])
    else:
        values, vectors = torch.linalg.eigh(train.mT @ train)
        vectors = vectors * (_inverse_root(values) > 0)[:, None]
    scale = train.square().sum(dim=2).mean(dim=1).sqrt()[:, None, None]
    scale = torch.where(scale > 0, scale, 1)
    return LogisticAxes(*(_with_ones(features @ vectors / scale) for features in (train, test)))


def solve_logistic(
    features: Tensor,
    labels: Tensor,
    sample_weights: Tensor,
    *,
    penalties: Tensor,
    start: Tensor,
    tolerance: float,
    max_iterations: int,
) -> LogisticSolution:
    """Minimise K regressions on each set of features.

    Args:
        features: (sets, samples, axes + 1), as in `LogisticAxes.train`.
        labels: (sets, samples, K).
        sample_weights: (sets, samples, K), which add up to 1 over the samples.
        penalties: (sets, K).
        start: (sets, axes + 1, K, classes).
        tolerance: Length of the gradient at which a regression has converged.
        max_iterations: Number of steps after which a regression stops, converged or not.
    """
    problem = _Problem(features, labels, sample_weights, penalties)
    weights = start
    loss, gradient = problem.loss(weights)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    iterations = torch.zeros_like(penalties, dtype=torch.int64)
    active = torch.ones_like(penalties, dtype=torch.bool)
    for _ in range(max_iterations):
        active &= gradient.square().sum(dim=(1, 3)).sqrt() > tolerance
        if not active.any():
            break
        direction = -_times_inverse_curvature(gradient, steps, problem.preconditioner)
        moved, new_loss, new_gradient = problem.search(weights, loss, gradient, direction, active)
        iterations += active
        # what did not move has nothing left to gain that rounding does not hide
        active &= (moved != weights).any(dim=3).any(dim=1)
        step, change = moved - weights, new_gradient - gradient
        steps = [*steps, (step, change, _dot(step, change))][-_MEMORY:]
        weights, loss, gradient = moved, new_loss, new_gradient
    return LogisticSolution(weights, gradient.square().sum(dim=(1, 3)).sqrt(), iterations)


class _Problem:
    """Losses of regressions, their gradients, and steps that lower them."""

    def __init__(
        self, features: Tensor, labels: Tensor, sample_weights: Tensor, penalties: Tensor
    ) -> None:
        self._features, self._labels = features, labels[..., None]
        self._sample_weights = sample_weights
        self._penalties = penalties[:, None, :, None].repeat(1, features.shape[2], 1, 1)
        self._penalties[:, -1] = 0  # the biases'
        bound = 0.5 * features.square().mT @ sample_weights  # (sets, axes + 1, K)
        self.preconditioner = 1 / (bound[..., None] + self._penalties).clamp(min=1e-12)

    def loss(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses, (sets, K), and their gradients, shaped like the weights."""
        logits = _logits(self._features, weights)
        normaliser = logits.logsumexp(dim=3, keepdim=True)
        losses = (normaliser - logits.gather(3, self._labels))[..., 0] * self._sample_weights
        residual = (logits - normaliser).exp_()
        residual.scatter_add_(3, self._labels, -torch.ones_like(normaliser))
        residual *= self._sample_weights[..., None]
        penalised = self._penalties * weights
        gradient = (self._features.mT @ residual.flatten(2)).view_as(weights) + penalised
        return losses.sum(dim=1) + 0.5 * _dot(penalised, weights), gradient

    def search(
        self, weights: Tensor, loss: Tensor, gradient: Tensor, direction: Tensor, active: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the longest of the steps 1, 1/2, 1/4, ... that lowers the loss enough.

        Regressions that are not active do not move.

        Returns:
            The new weights, losses and gradients.
        """
        slope = _dot(gradient, direction)
        rounding = _ROUNDING * torch.finfo(loss.dtype).eps * loss.abs()
        length = active.to(weights.dtype)
        for _ in range(_HALVINGS):
            stepped = weights + length[:, None, :, None] * direction
            moved = torch.where(active[:, None, :, None], stepped, weights)
            new_loss, new_gradient = self.loss(moved)
            too_long = active & ~(new_loss <= loss + _DECREASE * length * slope + rounding)
            if not too_long.any():
                return moved, new_loss, new_gradient
            length = torch.where(too_long, length / 2, length)
        moved = torch.where(too_long[:, None, :, None], weights, moved)
        return moved, *self.loss(moved)


def _times_inverse_curvature(
    gradient: Tensor, steps: list[tuple[Tensor, Tensor, Tensor]], preconditioner: Tensor
) -> Tensor:
    """Return L-BFGS's inverse Hessian times the gradient (Nocedal and Wright, algorithm 7.4)."""
    direction, factors = gradient, []
    for step, change, curvature in reversed(steps):
        factor = _ratio(_dot(step, direction), curvature)
        factors.append(factor)
        direction = direction - factor[:, None, :, None] * change
    scale = torch.ones_like(_dot(gradient, gradient))
    for _, change, curvature in steps[-1:]:
        ratio = _ratio(curvature, _dot(change, preconditioner * change))
        scale = torch.where(ratio > 0, ratio, scale)
    direction = preconditioner * direction * scale[:, None, :, None]
    for (step, change, curvature), factor in zip(steps, reversed(factors), strict=True):
        correction = torch.where(
            curvature > 0, factor - _ratio(_dot(change, direction), curvature), 0
        )
        direction = direction + correction[:, None, :, None] * step
    return direction


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    return (features @ weights.flatten(2)).view(*features.shape[:2], *weights.shape[2:])


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """(sets, axes + 1, K, classes) twice -> (sets, K)."""
    return (first * second).sum(dim=(1, 3))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; 0 where the denominator is not above 0, as for a regression that did not move."""
    tiny = torch.finfo(denominator.dtype).tiny
    return torch.where(denominator > 0, numerator / denominator.clamp(min=tiny), 0)


def _inverse_root(values: Tensor) -> Tensor:
    """Return 1 / sqrt of squared singular values, (sets, axes); 0 for rounding errors."""
    largest = values.amax(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    least = _RANK**2 * largest
    return torch.where(values > least, values.clamp(min=least).rsqrt(), 0)


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], dim=2)
