"""Sums per group of samples, and measures that are made of them with and without each group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.statistics.jackknife import jackknife
from lightning_mllm.statistics.missing import Floats


@dataclass(frozen=True, eq=False)
class GroupCurve:
    """A measure over layers.

    Attributes:
        value: (variants, layers), of all samples.
        without: (parts, variants, layers), the same without each part of them.
        sizes: (parts,), samples in each.
    """

    value: Floats
    without: Floats
    sizes: Floats

    def estimate(self) -> Floats:
        """Return the statistics, (variants, layers, 4)."""
        return jackknife(self.value, self.without, self.sizes)

    def score(self) -> GroupCurve:
        """Return the mean over all layers but the last."""
        return GroupCurve(self.value[:, :-1].mean(-1), self.without[..., :-1].mean(-1), self.sizes)


class GroupSums:
    """The sums of an alignment per group of samples; groups without any are left out."""

    def __init__(self, sums: Mapping[str, Tensor]) -> None:
        there = sums["n"] > 0
        self._sums: dict[str, Tensor] = {}
        for name, total in sums.items():
            self._sums[name] = total if name.endswith("moments") else total[there]
        self.sizes: Floats = self._sums["n"].numpy()
        self.half = torch.arange(len(self.sizes)) < len(self.sizes) // 2

    def total(self, name: str, kept: Tensor) -> Tensor:
        """Return a sum over some groups, which a (groups,) bool names."""
        total: Tensor = torch.tensordot(kept.double(), self._sums[name], dims=1)
        return total

    def names(self) -> tuple[str, ...]:
        """Return the names of the sums."""
        return tuple(self._sums)

    def per_group(self, name: str) -> Tensor:
        """Return the sum of each group; moments are sums of all groups together."""
        return self._sums[name]

    def choices(self) -> list[Tensor]:
        """Return all groups, and all but each in turn."""
        every = torch.ones(len(self.sizes), dtype=torch.bool)
        return [every, *(~torch.eye(len(self.sizes), dtype=torch.bool))]


def inner_product_of_sums(one: Tensor, other: Tensor) -> Tensor:
    """Return the inner products along the last dimension."""
    return (one * other).sum(-1)


def divide_sums(values: Tensor, number: float) -> Tensor:
    """Return values / number; NaN where the number is 0."""
    return values / number if number else torch.full_like(values, torch.nan)
