"""Sub-networks: which weights of the LLM's matrices are kept, and the LLM with nothing but these.

The "activated" sub-network of a task is what is left when the weights are pruned that matter least on the task's
tokens; what those of several tasks share is the alpha-SubNet (Shukor and Cord, arXiv 2405.16700).

    calibration = calibrate(backbone, batches, Pruning("wanda", 0.5), Reading("perceptual"))
    captions = calibration.subnetwork(backbone)
    alpha = intersection([captions, questions])  # sparser than either: alpha.sparsity says how sparse
    with pruned(backbone, alpha):
        ...  # any scorer, generation, `Trainer.test`
    with pruned(backbone, alpha):  # an ordinary Hugging Face folder
        export(backbone, Path("alpha"), source=source, processor=portable_processor(checkpoint))

On the command line `lightning export --subnetwork.path` does the last step.

Whether a weight is kept is one bit, in memory and in files: 0.8 GB for a model of 7 billion weights. A calibration's
file is a hundredth of that, and says the same for the weights that it was made with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import and_
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.analysis.subnetwork.pruning import Pruning, keep_highest
from lightning_mllm.analysis.subnetwork.tensor_files import digest, read_matrices, write_matrices
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone

logger = logging.getLogger(__name__)

_BITS = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8)


@dataclass(frozen=True, eq=False)
class SubNetwork:
    """The kept weights of each matrix.

    Attributes:
        name: Says how it came about.
        bits: Matrix -> (bytes,) uint8 on the CPU, 1 for a weight that is kept; row by row, lowest bit first.
        shapes: Matrix -> (out, in).
    """

    name: str
    bits: Mapping[Matrix, Tensor]
    shapes: Mapping[Matrix, tuple[int, int]]

    @classmethod
    def of(cls, name: str, kept: Iterable[tuple[Matrix, Tensor]]) -> SubNetwork:
        """Make one of bool tensors, (out, in), on any device; of an iterator they need not exist at once."""
        bits, shapes = {}, {}
        for matrix, mask in kept:
            bits[matrix], shapes[matrix] = _pack(mask), (mask.shape[0], mask.shape[1])
        return cls(name, bits, shapes)

    @classmethod
    def by_score(
        cls, name: str, backbone: Backbone, pruning: Pruning, squares: Mapping[Matrix, Tensor] | None = None
    ) -> SubNetwork:
        """Prune each matrix of a model by its scores; the model is left as it is.

        Args:
            name: Of the sub-network.
            backbone: The model.
            pruning: How.
            squares: Matrix -> (in,), sums of squares of its inputs; `calibrate` has them.

        Raises:
            ConfigError: The scores need a calibration, or the model can't be pruned.
        """
        if pruning.needs_calibration and squares is None:
            raise ConfigError(
                f"The score {pruning.score!r} needs activations: use calibrate(...).subnetwork(backbone), or "
                "'magnitude' or 'random'."
            )
        linear = matrices(backbone).items()
        kept = ((m, pruning.kept(m, module.weight, squares[m] if squares else None)) for m, module in linear)
        return cls.of(name, kept)

    def kept(self, matrix: Matrix, device: torch.device | str = "cpu") -> Tensor:
        """Return which weights of a matrix are kept, (out, in) bool."""
        rows, columns = self.shapes[matrix]
        bits = (self.bits[matrix].to(device)[:, None] & _BITS.to(device)) != 0
        return bits.flatten()[: rows * columns].view(rows, columns)

    @cached_property
    def counts(self) -> dict[Matrix, int]:
        """Matrix -> number of its kept weights."""
        return {matrix: int(np.bitwise_count(bits.numpy()).sum()) for matrix, bits in self.bits.items()}

    def sparsity_of(self, matrix: Matrix) -> float:
        """Return the share of a matrix' weights that are pruned."""
        rows, columns = self.shapes[matrix]
        return 1 - self.counts[matrix] / (rows * columns)

    @property
    def sparsity(self) -> float:
        """Share of the weights of all matrices that are pruned, as it has come about."""
        return 1 - sum(self.counts.values()) / sum(rows * columns for rows, columns in self.shapes.values())

    @property
    def digest(self) -> str:
        """A short hash of what is kept."""
        return digest(self.bits, {str(matrix): shape for matrix, shape in self.shapes.items()})

    def __and__(self, other: SubNetwork) -> SubNetwork:
        """What both keep."""
        return self._combined("&", other, torch.bitwise_and)

    def __or__(self, other: SubNetwork) -> SubNetwork:
        """What one of the two keeps."""
        return self._combined("|", other, torch.bitwise_or)

    def __sub__(self, other: SubNetwork) -> SubNetwork:
        """What this keeps and the other prunes."""
        return self._combined("-", other, lambda own, its: own & ~its)

    def save(self, path: Path) -> None:
        """Write a safetensors file, one bit per weight.

        Raises:
            CheckpointError: The disk is full or can't be written.
        """
        about = {"name": self.name, "shapes": {str(matrix): shape for matrix, shape in self.shapes.items()}}
        write_matrices(path, self.bits, "sub-network", about)

    @classmethod
    def load(cls, path: Path) -> SubNetwork:
        """Read such a file.

        Raises:
            CheckpointError: The file is missing or damaged, or holds something else.
        """

        def make(bits: dict[Matrix, Tensor], about: dict[str, Any]) -> SubNetwork:
            return cls(about["name"], bits, {matrix: tuple(about["shapes"][str(matrix)]) for matrix in bits})

        return read_matrices(path, "sub-network", make)

    def check_fits(self, linear: Mapping[Matrix, nn.Linear]) -> None:
        """Refuse a model with other matrices.

        Raises:
            ConfigError: Names or shapes differ.
        """
        own, its = dict(self.shapes), {matrix: tuple(module.weight.shape) for matrix, module in linear.items()}
        if own != its:
            other = next(matrix for matrix in sorted({*own, *its}) if own.get(matrix) != its.get(matrix))
            raise ConfigError(
                f"Sub-network {self.name!r} does not fit the model: {other} has shape {own.get(other)} in the one and "
                f"{its.get(other)} in the other. Use one that was made for a model of this size."
            )

    def _combined(self, sign: str, other: SubNetwork, function: Callable[[Tensor, Tensor], Tensor]) -> SubNetwork:
        if dict(self.shapes) != dict(other.shapes):
            raise ConfigError(f"Sub-networks {self.name!r} and {other.name!r} are of models of different sizes.")
        bits = {matrix: function(own, other.bits[matrix]) for matrix, own in self.bits.items()}
        return SubNetwork(f"({self.name} {sign} {other.name})", bits, self.shapes)


def intersection(subnetworks: Sequence[SubNetwork], name: str = "alpha") -> SubNetwork:
    """Return what all keep: the alpha-SubNet, where each is a task's. It prunes at least what one of them prunes.

    Raises:
        ConfigError: There is none.
    """
    if not subnetworks:
        raise ConfigError("An alpha-SubNet is what several sub-networks share, and there is none. Name one or more.")
    shared = reduce(and_, subnetworks)
    return SubNetwork(name, shared.bits, shared.shapes)


def same_size(
    subnetwork: SubNetwork, backbone: Backbone, score: Literal["random", "magnitude"], seed: int = 0
) -> SubNetwork:
    """Return a sub-network to compare with: it keeps as many weights of each row, by another score.

    Args:
        subnetwork: What it is compared with.
        backbone: The model.
        score: Noise, or |W|.
        seed: Of the noise.

    Raises:
        ConfigError: The sub-network does not fit the model.
    """
    linear, pruning = matrices(backbone), Pruning(score, seed=seed)
    subnetwork.check_fits(linear)

    def kept(matrix: Matrix, weight: Tensor) -> Tensor:
        counts = subnetwork.kept(matrix, weight.device).sum(1, keepdim=True)
        return keep_highest(pruning.scores(matrix, weight), counts)

    name = f"{subnetwork.name} {score}"
    return SubNetwork.of(name, ((matrix, kept(matrix, module.weight)) for matrix, module in linear.items()))


def iou(one: Tensor, two: Tensor) -> float:
    """Return the intersection over union of kept weights, two bool tensors of one shape; NaN if none is kept."""
    union = int((one | two).sum())
    return int((one & two).sum()) / union if union else float("nan")


def chance_iou(one: float, two: float) -> float:
    """Return the IoU of two random masks, of their sparsities; (1 - s) / (1 + s) if both are s."""
    both = (1 - one) * (1 - two)
    union = 2 - one - two - both
    return both / union if union else float("nan")


@contextmanager
def pruned(backbone: Backbone, subnetwork: SubNetwork) -> Iterator[None]:
    """Let a model have nothing but a sub-network while the `with` block lasts.

    The weights themselves are not touched: the model gets pruned copies, and gets its own back at the end, also after
    an exception. What is trained inside the block in these matrices is lost with the copies; the rest may be trained.
    Blocks can be nested, and a matrix that several layers share keeps what all of their masks keep. A sub-network that
    is the whole model is told by a warning.

    Raises:
        ConfigError: The sub-network is that of a model of another size, or the model can't be pruned.
    """
    linear = matrices(backbone)
    subnetwork.check_fits(linear)
    if not subnetwork.sparsity:
        logger.warning("Sub-network %r prunes nothing: each weight of the model is kept.", subnetwork.name)
    with masked((module, subnetwork.kept(matrix, module.weight.device)) for matrix, module in linear.items()):
        yield


@contextmanager
def masked(layers: Iterable[tuple[nn.Linear, Tensor]]) -> Iterator[None]:
    """Do the same to some linear layers, each with the (out, in) bool tensor of the weights that it keeps."""
    own: dict[Tensor, Tensor] = {}
    try:
        for linear, kept in layers:
            weight: Tensor = linear.weight
            own.setdefault(weight, weight.data)
            with torch.inference_mode(False):  # such tensors could not be used in training
                weight.data = weight.data.masked_fill(~kept, 0)
        torch.clear_autocast_cache()  # autocast keeps 16-bit copies of weights that are trained, and would use those
        yield
    finally:
        for weight, data in own.items():
            weight.data = data.to(weight.device, weight.dtype)  # the same tensor, unless the model was moved inside
        torch.clear_autocast_cache()


def _pack(mask: Tensor) -> Tensor:
    """Return eight entries of a bool tensor per byte, on the CPU."""
    flat = nn.functional.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (flat * _BITS.to(mask.device)).sum(1, dtype=torch.uint8).cpu()
