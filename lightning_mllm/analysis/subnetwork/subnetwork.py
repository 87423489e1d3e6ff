"""Sub-networks: which weights of the LLM's matrices are kept, and the LLM with nothing but these.

The "activated" sub-network of a task is what is left when the weights are pruned that matter least
on the task's tokens; what those of several tasks share is the alpha-SubNet (Shukor and Cord, arXiv
2405.16700).

    options = CalibrationOptions(tokens="perceptual")
    calibration = calibrate(backbone, batches, Pruning("wanda", 0.5), options)
    captions = calibration.subnetwork(backbone)
    alpha = intersection([captions, questions])  # sparser than either, see alpha.sparsity
    with pruned(backbone, alpha):
        ...  # any scorer, generation, `Trainer.test`
    with pruned(backbone, alpha):  # an ordinary Hugging Face folder
        export(backbone, Path("alpha"), source=source, processor=portable_processor(checkpoint))

On the command line `lightning export --subnetwork.path` does the last step.

One bit says whether a weight is kept, in memory and in files: 0.8 GB for a model of 7 billion
weights. A calibration's file is a hundredth of that, and says the same, but only together with the
weights that it was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod
from operator import and_
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.analysis.subnetwork.matrix_files import (
    digest_of_matrix_file,
    read_matrix_file,
    write_matrix_file,
)
from lightning_mllm.analysis.subnetwork.pruning import Pruning, prune_to_highest
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone

_BITS = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8)


@dataclass(frozen=True, eq=False)
class SubNetwork:
    """The kept weights of each matrix.

    Attributes:
        name: Name that says how the sub-network was made.
        bits: Matrix -> (bytes,) uint8 on the CPU, 1 for a weight that is kept; row by row, lowest
            bit first.
        shapes: Matrix -> (out, in).
    """

    name: str
    bits: Mapping[Matrix, Tensor]
    shapes: Mapping[Matrix, tuple[int, int]]

    @classmethod
    def of(cls, name: str, kept: Iterable[tuple[Matrix, Tensor]]) -> SubNetwork:
        """Make a sub-network of bool tensors, (out, in), on any device.

        The tensors of an iterator need not exist at the same time.
        """
        bits, shapes = {}, {}
        for matrix, mask in kept:
            bits[matrix], shapes[matrix] = _pack(mask), (mask.shape[0], mask.shape[1])
        return cls(name, bits, shapes)

    @classmethod
    def by_score(
        cls,
        name: str,
        backbone: Backbone,
        pruning: Pruning,
        squares: Mapping[Matrix, Tensor] | None = None,
    ) -> SubNetwork:
        """Prune each matrix of a model by its scores; the model is left as it is.

        Args:
            name: Name of the sub-network.
            backbone: The model.
            pruning: How weights are scored, and how many are kept.
            squares: Matrix -> (in,), sums of squares of its inputs; `calibrate` has them.

        Raises:
            ConfigError: The scores need a calibration, or the model can't be pruned.
        """
        if pruning.needs_calibration and squares is None:
            raise ConfigError(
                f"The score {pruning.score!r} needs activations: use "
                "calibrate(...).subnetwork(backbone), or 'magnitude' or 'random'."
            )

        def prune() -> Iterator[tuple[Matrix, Tensor]]:
            for matrix, module in matrices(backbone).items():
                own = squares[matrix] if squares else None
                yield matrix, pruning.kept(matrix, module.weight, own)

        return cls.of(name, prune())

    def kept(self, matrix: Matrix, device: torch.device | str = "cpu") -> Tensor:
        """Return which weights of a matrix are kept, (out, in) bool."""
        rows, columns = self.shapes[matrix]
        bits = (self.bits[matrix].to(device)[:, None] & _BITS.to(device)) != 0
        return bits.flatten()[: rows * columns].view(rows, columns)

    @cached_property
    def counts(self) -> dict[Matrix, int]:
        """Matrix -> number of its kept weights."""
        counts: dict[Matrix, int] = {}
        for matrix, bits in self.bits.items():
            counts[matrix] = int(np.bitwise_count(bits.numpy()).sum())
        return counts

    def sparsity_of(self, matrix: Matrix) -> float:
        """Return the share of a matrix' weights that are pruned."""
        rows, columns = self.shapes[matrix]
        return 1 - self.counts[matrix] / (rows * columns)

    @property
    def sparsity(self) -> float:
        """Share of the weights of all matrices that are pruned, counted."""
        return 1 - sum(self.counts.values()) / sum(map(prod, self.shapes.values()))

    @property
    def digest(self) -> str:
        """A short hash of what is kept."""
        return digest_of_matrix_file(
            self.bits, {str(matrix): shape for matrix, shape in self.shapes.items()}
        )

    def __and__(self, other: SubNetwork) -> SubNetwork:
        """What both keep."""
        return self._combined("&", other, torch.bitwise_and)

    def __or__(self, other: SubNetwork) -> SubNetwork:
        """What at least one of the two keeps."""
        return self._combined("|", other, torch.bitwise_or)

    def __sub__(self, other: SubNetwork) -> SubNetwork:
        """What this keeps and the other prunes."""
        return self._combined("-", other, lambda own, its: own & ~its)

    def save(self, path: Path) -> None:
        """Write a safetensors file, one bit per weight.

        Raises:
            CheckpointError: The disk is full or can't be written.
        """
        about = {
            "name": self.name,
            "shapes": {str(matrix): shape for matrix, shape in self.shapes.items()},
        }
        write_matrix_file(path, self.bits, "sub-network", about)

    @classmethod
    def load(cls, path: Path) -> SubNetwork:
        """Read such a file.

        Raises:
            CheckpointError: The file is missing or damaged, or holds something else.
        """

        def make(bits: dict[Matrix, Tensor], about: dict[str, Any]) -> SubNetwork:
            return cls(
                about["name"],
                bits,
                {matrix: tuple(about["shapes"][str(matrix)]) for matrix in bits},
            )

        return read_matrix_file(path, "sub-network", make)

    def check_fits(self, linear: Mapping[Matrix, nn.Linear]) -> None:
        """Refuse a model with other matrices.

        Raises:
            ConfigError: Names or shapes differ.
        """
        shapes = {matrix: tuple(module.weight.shape) for matrix, module in linear.items()}
        for matrix in sorted({*self.shapes, *shapes}):
            own, its = self.shapes.get(matrix), shapes.get(matrix)
            if own == its:
                continue
            raise ConfigError(
                f"Sub-network {self.name!r} does not fit the model: {matrix} has shape {own} in "
                f"the one and {its} in the other. Use one that was made for a model of this size."
            )

    def _combined(
        self, sign: str, other: SubNetwork, function: Callable[[Tensor, Tensor], Tensor]
    ) -> SubNetwork:
        if dict(self.shapes) != dict(other.shapes):
            raise ConfigError(
                f"Sub-networks {self.name!r} and {other.name!r} are of models of different sizes."
            )
        bits = {matrix: function(own, other.bits[matrix]) for matrix, own in self.bits.items()}
        return SubNetwork(f"({self.name} {sign} {other.name})", bits, self.shapes)


def intersection(subnetworks: Sequence[SubNetwork], name: str = "alpha") -> SubNetwork:
    """Return what all keep: the alpha-SubNet, where each is the sub-network of a task.

    It prunes whatever one of them prunes.

    Raises:
        ConfigError: There is none.
    """
    if not subnetworks:
        raise ConfigError(
            "An alpha-SubNet is what several sub-networks share, and there is none. Name one or "
            "more."
        )
    shared = reduce(and_, subnetworks)
    return SubNetwork(name, shared.bits, shared.shapes)


def same_size(
    subnetwork: SubNetwork, backbone: Backbone, score: Literal["random", "magnitude"], seed: int = 0
) -> SubNetwork:
    """Return a sub-network to compare with: it keeps as many weights of each row, by another score.

    Args:
        subnetwork: What it is compared with.
        backbone: The model.
        score: What decides which weights are kept: noise, or |W|.
        seed: Seed of the noise.

    Raises:
        ConfigError: The sub-network does not fit the model.
    """
    linear = matrices(backbone)
    pruning = Pruning(score, seed=seed)
    subnetwork.check_fits(linear)

    def prune() -> Iterator[tuple[Matrix, Tensor]]:
        for matrix, module in linear.items():
            weight = module.weight
            counts = subnetwork.kept(matrix, weight.device).sum(1, keepdim=True)
            yield matrix, prune_to_highest(pruning.scores(matrix, weight), counts)

    return SubNetwork.of(f"{subnetwork.name} {score}", prune())


def _pack(mask: Tensor) -> Tensor:
    """Return eight entries of a bool tensor per byte, on the CPU."""
    flat = nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (flat * _BITS.to(mask.device)).sum(1, dtype=torch.uint8).cpu()
