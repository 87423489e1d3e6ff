"""Similarities that need the tokens of two samples at once: of all pairs within a drawn set of samples.

The median, maximum and minimum over the tokens of two samples do not follow from one vector per sample, as their means
do. So some samples are drawn, and all pairs of them compared. Which ones depends on a seed and their names alone: they
are those with the lowest numbers of `rank_of`. While samples come, the tokens of the lowest ones so far are kept, on
the CPU and in the model's dtype: memory is that of so many samples, however many there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from lightning_mllm.analysis.alignment.similarity import token_similarities, unit
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.statistics.jackknife import lowest
from lightning_mllm.statistics.missing import Floats

COMPARISONS = ("ima_same_layer", "ima_input", *SETS)


class Member:
    """The tokens of a drawn sample, layer by layer.

    Args:
        mask: (sets, sequence) bool.
    """

    def __init__(self, mask: Tensor) -> None:
        self._at = [each.nonzero()[:, 0] for each in mask]
        self._states: list[list[Tensor]] = []  # layer, set -> (tokens, width)
        self._kept: list[list[Tensor]] = []  # layer, set -> (variants, tokens) bool

    @property
    def layers(self) -> int:
        """Number of layers so far."""
        return len(self._states)

    def add(self, states: Tensor, kept: Tensor) -> None:
        """Take in the next layer: (sequence, width) and (variants, sets, sequence)."""
        self._states.append([states[at].cpu() for at in self._at])
        self._kept.append([kept[:, k, at].cpu() for k, at in enumerate(self._at)])

    def tokens(self, layer: int, device: torch.device) -> list[_Tokens]:
        """Return the tokens of each set at a layer."""
        return [
            _Tokens(unit(states.to(device))[0][None], kept.to(device)[None])
            for states, kept in zip(self._states[layer], self._kept[layer], strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Units (1, tokens, width) and which of them are kept, (1, variants, tokens)."""

    units: Tensor
    kept: Tensor

    def compare(self, other: _Tokens, either_way: bool = False) -> Tensor:
        """Return (variants, token modes)."""
        found = token_similarities(self.units, other.units, self.kept, other.kept, either_way=either_way)
        return found[0].cpu()


@dataclass
class PairSample:
    """The samples drawn so far.

    Attributes:
        size: How many are drawn.
        seed: Of the drawing.
        members: Name -> tokens.
        device: On which they are compared.
        changed: Whether there are others than when they were compared.
    """

    size: int
    seed: int
    members: dict[str, Member] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    changed: bool = False

    def lowest(self, sample_ids: set[str]) -> set[str]:
        """Return the samples that are drawn of these."""
        return lowest(sample_ids, self.size, self.seed)

    def wanted(self, sample_ids: Sequence[str]) -> list[int]:
        """Return which of some samples are drawn, beside those that are here: their numbers."""
        drawn = self.lowest({*self.members, *sample_ids})
        return [row for row, sample_id in enumerate(sample_ids) if sample_id in drawn and sample_id not in self.members]

    def add(self, members: Mapping[str, Member]) -> None:
        """Take in samples, and leave out those that are not drawn any more."""
        found = {**self.members, **members}
        self.changed |= bool(members)
        self.members = {sample_id: found[sample_id] for sample_id in self.lowest({*found})}

    def compare(self) -> dict[str, Tensor]:
        """Return the similarities of all pairs: names of the two -> (variants, layers, comparisons, token modes)."""
        self.changed = False
        pairs = list(combinations(sorted(self.members), 2))
        found: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}
        at_input = {name: member.tokens(0, self.device)[0] for name, member in self.members.items()}
        for layer in range(min((member.layers for member in self.members.values()), default=0)):
            tokens = {name: member.tokens(layer, self.device) for name, member in self.members.items()}
            for one, other in pairs:
                (perceptual, textual), (perceptual_2, textual_2) = tokens[one], tokens[other]
                cells = [
                    (perceptual.compare(textual_2) + perceptual_2.compare(textual)) / 2,
                    (at_input[one].compare(textual_2) + at_input[other].compare(textual)) / 2,
                    perceptual.compare(perceptual_2, either_way=True),
                    textual.compare(textual_2, either_way=True),
                ]
                found[one, other].append(torch.stack(cells, dim=1))
        return {json.dumps(pair): torch.stack(layers, dim=1) for pair, layers in found.items()}


def mean_of_pairs(pairs: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
    """Return the mean over pairs of samples, and the same without each sample in turn.

    A mean over pairs is a U-statistic, of which the jackknife over samples gives the variance (Arvesen, Annals of
    Mathematical Statistics 40, 1969).

    Args:
        pairs: From `PairSample.compare`; not empty.

    Returns:
        (variants, layers, comparisons, token modes), and (samples, ...) of the same; NaN where no pair is left.
    """
    both = [json.loads(pair) for pair in pairs]
    values = torch.stack(list(pairs.values())).numpy()
    samples = sorted({name for pair in both for name in pair})
    others = np.array([[sample not in pair for pair in both] for sample in samples], dtype=np.float64)
    left = others.sum(1).reshape(-1, *(1,) * (values.ndim - 1))
    sums = np.tensordot(others, values, axes=1)
    return values.mean(0), np.divide(sums, left, out=np.full_like(sums, np.nan), where=left > 0)
