"""Similarities that need the tokens of two samples: of all pairs within a drawn set of samples.

The median, maximum and minimum over the tokens of two samples do not follow from one vector per
sample, as their means do. So some samples are drawn, and all pairs of them compared. The draw
depends on a seed and the samples' names alone: those with the lowest `seed_rank_of` are drawn.
While samples come, the tokens of the lowest ones so far are kept, on the CPU and in the model's
dtype: memory is that of the drawn samples, however many come. Several processes hand theirs to the
first one in files: the lowest of all are among the lowest of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lightning_mllm.analysis.alignment.similarity import normalise_for_similarity, token_similarity
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.statistics.missing import Floats, divide_unless_missing
from lightning_mllm.store.files import write_tensor_file
from lightning_mllm.store.seeds import draw_by_seed

COMPARISONS = ("ima_same_layer", "ima_input", *SETS)


class DrawnMember:
    """The tokens of a drawn sample, layer by layer.

    Args:
        mask: (sets, sequence) bool, which tokens are in each set.
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

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it as named tensors, for a file."""
        found: dict[str, Tensor] = {}
        for layer, sets in enumerate(zip(self._states, self._kept, strict=True)):
            for k, (states, kept) in enumerate(zip(*sets, strict=True)):
                found[f"{layer}/{k}/states"], found[f"{layer}/{k}/kept"] = states, kept
        return found

    @classmethod
    def of_tensors(cls, named: Mapping[str, Tensor]) -> DrawnMember:
        """Return the sample of these `tensors`."""
        member = cls(torch.zeros(0, 0))
        for layer in range(len(named) // (2 * len(SETS))):
            keys = [f"{layer}/{k}" for k in range(len(SETS))]
            member._states.append([named[f"{key}/states"] for key in keys])
            member._kept.append([named[f"{key}/kept"] for key in keys])
        return member

    def tokens(self, layer: int, device: torch.device) -> list[_Tokens]:
        """Return the tokens of each set at a layer."""
        found = []
        for states, kept in zip(self._states[layer], self._kept[layer], strict=True):
            units, _ = normalise_for_similarity(states.to(device))
            found.append(_Tokens(units[None], kept.to(device)[None]))
        return found


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Tokens of a set, of one sample.

    Attributes:
        units: (1, tokens, width), from `normalise_for_similarity`.
        kept: (1, variants, tokens) bool, which of them are kept.
    """

    units: Tensor
    kept: Tensor

    def compare(self, other: _Tokens, either_way: bool = False) -> Tensor:
        """Return (variants, token modes)."""
        found = token_similarity(
            self.units, other.units, self.kept, other.kept, either_way=either_way
        )
        return found[0].cpu()


@dataclass
class DrawnPairs:
    """The samples drawn so far.

    Attributes:
        size: How many samples are drawn.
        seed: Seed of the drawing.
        members: Name of a drawn sample -> its tokens.
        device: The device on which they are compared.
        changed: Whether other samples are drawn than when they were compared.
    """

    size: int
    seed: int
    members: dict[str, DrawnMember] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    changed: bool = False

    def lowest(self, sample_ids: set[str]) -> set[str]:
        """Return the samples that are drawn of these."""
        return draw_by_seed(sample_ids, self.size, self.seed)

    def wanted(self, sample_ids: Sequence[str]) -> list[int]:
        """Return the rows of samples that are drawn and not here yet."""
        new = self.lowest({*self.members, *sample_ids}) - self.members.keys()
        return [row for row, sample_id in enumerate(sample_ids) if sample_id in new]

    def add(self, members: Mapping[str, DrawnMember]) -> None:
        """Take in samples, and leave out those that are not drawn any more."""
        found = {**self.members, **members}
        self.changed |= bool(members)
        self.members = {sample_id: found[sample_id] for sample_id in self.lowest({*found})}

    def write(self, path: Path) -> None:
        """Write the samples to a file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for number, member in enumerate(self.members.values()):
            own = member.tensors()
            tensors |= {f"{number}/{name}": tensor for name, tensor in own.items()}
        write_tensor_file(path, tensors, {"members": json.dumps(list(self.members))})

    def take_in(self, path: Path) -> None:
        """Take in the samples of such a file, and remove it."""
        with safe_open(path, framework="pt") as file:
            names = json.loads(file.metadata()["members"])
            found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
            for key in file.keys():  # noqa: SIM118  # no mapping
                number, _, rest = key.partition("/")
                found[names[int(number)]][rest] = file.get_tensor(key)
        self.add({name: DrawnMember.of_tensors(own) for name, own in found.items()})
        path.unlink()

    def compare(self) -> dict[str, Tensor]:
        """Return the similarities of all pairs.

        Returns:
            Names of the two samples -> (variants, layers, comparisons, token modes).
        """
        self.changed = False
        pairs = list(combinations(sorted(self.members), 2))
        found: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}
        at_input = {name: perceptual for name, (perceptual, _) in self._tokens_at(0).items()}
        for layer in range(min((member.layers for member in self.members.values()), default=0)):
            tokens = self._tokens_at(layer)
            for first, second in pairs:
                perceptual, textual = tokens[first]
                other_perceptual, other_textual = tokens[second]
                same_layer = perceptual.compare(other_textual) + other_perceptual.compare(textual)
                entering = at_input[first].compare(other_textual)
                other_entering = at_input[second].compare(textual)
                comparisons = [
                    same_layer / 2,
                    (entering + other_entering) / 2,
                    perceptual.compare(other_perceptual, either_way=True),
                    textual.compare(other_textual, either_way=True),
                ]
                found[first, second].append(torch.stack(comparisons, dim=1))
        return {json.dumps(pair): torch.stack(layers, dim=1) for pair, layers in found.items()}

    def _tokens_at(self, layer: int) -> dict[str, list[_Tokens]]:
        """Return the tokens of each drawn sample at a layer, per set."""
        return {name: each.tokens(layer, self.device) for name, each in self.members.items()}


def mean_of_drawn_pairs(pairs: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
    """Return the mean over pairs of samples, and the same without each sample in turn.

    A mean over pairs is a U-statistic; the jackknife over samples gives its variance
    (Arvesen, Annals of Mathematical Statistics 40, 1969).

    Args:
        pairs: From `DrawnPairs.compare`; not empty.

    Returns:
        (variants, layers, comparisons, token modes), and (samples, ...) of the same; NaN where no
        pair is left.
    """
    names = [json.loads(pair) for pair in pairs]
    values = torch.stack(list(pairs.values())).numpy()
    samples = sorted(set(chain.from_iterable(names)))
    others = np.ones((len(samples), len(names)))  # 1 where a sample is not in a pair
    for column, pair in enumerate(names):
        for name in pair:
            others[samples.index(name), column] = 0
    left = others.sum(1).reshape(-1, *(1,) * (values.ndim - 1))
    sums = np.tensordot(others, values, axes=1)
    return values.mean(0), divide_unless_missing(sums, left)
