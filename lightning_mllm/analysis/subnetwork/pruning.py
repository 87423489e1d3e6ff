"""Which weights of a matrix are kept: those with the highest scores.

They are the highest of each row, of the whole matrix, or n of each m neighbours.

The score of Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
arXiv 2306.11695) is S_rc = |W_rc| a_c, in which a_c is the norm of the matrix' input c over all
tokens of a calibration. The other scores are its two factors alone, a_c (`activation`) and |W_rc|
(`magnitude`), and noise (`random`). All scores are in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_mllm.analysis.subnetwork.matrices import Matrix
from lightning_mllm.errors import ConfigError
from lightning_mllm.store.seeds import torch_generator

WeightScore = Literal["wanda", "activation", "magnitude", "random"]
Scope = Literal["row", "matrix"]

_CALIBRATED = ("wanda", "activation")


@dataclass(frozen=True)
class Pruning:
    """How a matrix is pruned.

    Attributes:
        score: What decides which weights are pruned: those with low scores are. Of equal ones the
            leftmost is pruned first.
        sparsity: Share s of weights that are pruned: of n weights floor(s n). Or "n:m", in quotes:
            of each m weights that follow each other in a row, n are kept.
        per: Whether the weights of a row compete, as in the paper, or those of the whole matrix.
        seed: Seed of the score `random`.
    """

    score: WeightScore = "wanda"
    sparsity: float | str = 0.5
    per: Scope = "row"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choice in (("score", WeightScore), ("per", Scope)):
            value, known = getattr(self, name), get_args(choice)
            if value not in known:
                raise ConfigError(f"Pruning.{name} is {value!r}; it can be {', '.join(known)}.")
        if isinstance(self.sparsity, str):
            self._parse()
            if self.per != "row":
                raise ConfigError(
                    f"Pruning to {self.sparsity} is done within rows; leave per: {self.per} out."
                )
        elif not 0 <= self.sparsity < 1:
            raise ConfigError(
                "Pruning.sparsity must be at least 0 and less than 1, or like '2:4', in quotes; "
                f"not {self.sparsity}."
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether the score depends on activations."""
        return self.score in _CALIBRATED

    @property
    def share(self) -> float:
        """Share of weights that are pruned, before rounding."""
        if isinstance(self.sparsity, str):
            kept, group = self._parse()
            return 1 - kept / group
        return self.sparsity

    def check_fits(self, weights: Mapping[Matrix, Tensor]) -> None:
        """Refuse matrices, (out, in), whose rows can't be cut into groups of m.

        Raises:
            ConfigError: A row can't be cut into groups of m.
        """
        group = self._parse()[1] if isinstance(self.sparsity, str) else 1
        for matrix, weight in weights.items():
            if weight.shape[1] % group:
                raise ConfigError(
                    f"{matrix} has rows of {weight.shape[1]} weights, which can't be cut into "
                    f"groups of {group}. Choose another pattern than {self.sparsity!r}."
                )

    def kept(self, matrix: Matrix, weight: Tensor, squares: Tensor | None = None) -> Tensor:
        """Return which weights are kept, (out, in) bool.

        Args:
            matrix: Name of the matrix, on which the score `random` depends.
            weight: (out, in), the weights.
            squares: (in,) float64, sums of squares of the inputs; for scores of activations.

        Raises:
            ConfigError: A row can't be cut into groups of m.
        """
        self.check_fits({matrix: weight})
        scores = self.scores(matrix, weight, squares)
        if isinstance(self.sparsity, str):
            kept, group = self._parse()
            return prune_to_highest(scores.unflatten(1, (-1, group)), kept).flatten(1)
        if self.per == "matrix":
            return prune_to_highest(scores.flatten(), self._count(scores.numel())).view_as(scores)
        return prune_to_highest(scores, self._count(scores.shape[1]))

    def scores(self, matrix: Matrix, weight: Tensor, squares: Tensor | None = None) -> Tensor:
        """Return the scores, (out, in) float64; for the arguments see `kept`."""
        if self.score == "random":
            generator = torch_generator(self.seed, matrix)
            drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
            return drawn.to(weight.device)
        size = weight.detach().double().abs()
        if self.score == "magnitude":
            return size
        assert squares is not None  # `needs_calibration`
        norms = squares.to(weight.device).sqrt()
        return size * norms if self.score == "wanda" else norms.expand_as(size)

    def _count(self, weights: int) -> int:
        """Return how many of so many weights are kept."""
        share = Fraction(str(self.share))  # 0.29 * 100 is 28.999999999999996, but 29 are meant
        return weights - math.floor(share * weights)

    def _parse(self) -> tuple[int, int]:
        kept, _, group = str(self.sparsity).partition(":")
        if not (kept.isdecimal() and group.isdecimal() and 0 < int(kept) <= int(group)):
            raise ConfigError(
                f"Pruning.sparsity is {self.sparsity!r}; expected a number, or 'n:m' with "
                "0 < n <= m."
            )
        return int(kept), int(group)


def prune_to_highest(scores: Tensor, counts: Tensor | int) -> Tensor:
    """Return which scores are among the highest of their row, as a bool tensor of the same shape.

    Args:
        scores: (..., columns).
        counts: How many of each row are kept; (..., 1), or one number for all rows.
    """
    order = scores.argsort(dim=-1, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device)
    high = (places >= scores.shape[-1] - counts).expand_as(order)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, high)
