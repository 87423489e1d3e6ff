"""Calibration: how strongly the tokens of some samples drive each input of each matrix of the LLM.

For each matrix the sums of squares of its inputs over the counted tokens are kept, (in,) in
float64. Padding never counts, so that, except for rounding, neither its length nor the composition
of batches matters.

By default a layer is pruned before the next one is calibrated, as in Wanda: the later layer gets
what the pruned one passes on. That needs the residual stream of all samples at once, (samples,
positions, width). With `sequential=False` a single pass over the data is enough, and memory does
not grow with the number of samples.

Which tokens are counted, and what they attend to, follows Shukor and Cord (arXiv 2405.16700). With
`context="own"`, as in the paper, the LLM gets nothing but the counted tokens and the first token of
the sequence, which attracts attention; that one counts only if it is one of them. With
`context="full"` the tokens are counted within the whole sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.stepwise import StepwiseStream
from lightning_mllm.analysis.subnetwork.calibration_options import CalibrationOptions
from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.analysis.subnetwork.matrix_files import (
    digest_of_matrix_file,
    read_matrix_file,
    write_matrix_file,
)
from lightning_mllm.analysis.subnetwork.pruned import pruned_layers
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.analysis.subnetwork.subnetwork import SubNetwork
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import CheckpointError, ConfigError, DataError
from lightning_mllm.models.backbone import Backbone, fingerprint_backbone
from lightning_mllm.models.hooks import hook_inputs
from lightning_mllm.models.layers import decoder_layers, run_layers_uncompiled
from lightning_mllm.progress import track

Layers = Mapping[Matrix, nn.Linear]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a model's matrices get as inputs on a task.

    With the model's weights it decides which of them are kept.

    Attributes:
        task: Name of the task.
        pruning: How the weights are scored; with `options.sequential` earlier layers were pruned
            so.
        options: Which tokens were counted, and what the model was given.
        squares: Matrix -> (in,) float64 on the CPU, sums of squares of its inputs over the counted
            tokens.
        sample_ids: Ids of the samples.
        tokens: How many tokens were counted.
        weights: Fingerprint of the LLM.
    """

    task: str
    pruning: Pruning
    options: CalibrationOptions
    squares: Mapping[Matrix, Tensor]
    sample_ids: tuple[str, ...]
    tokens: int
    weights: str

    def subnetwork(self, backbone: Backbone) -> SubNetwork:
        """Return which weights are kept.

        Where layers were pruned one after the other, they are the ones that were kept then.

        Raises:
            CheckpointError: The model is not the one that was calibrated.
        """
        self.check_fits(backbone)
        return SubNetwork.by_score(self.task, backbone, self.pruning, self.squares)

    def kept(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """Return which weights of a matrix are kept, (out, in) bool."""
        return self.pruning.kept(matrix, weight, self.squares[matrix])

    def counts(self) -> dict[str, int]:
        """Return the numbers of samples and of counted tokens."""
        return {"samples": len(self.sample_ids), "tokens": self.tokens}

    def check_fits(self, backbone: Backbone) -> None:
        """Refuse a model with other weights.

        Raises:
            CheckpointError: The weights differ.
        """
        decoder: Any = backbone.decoder
        weights = fingerprint_backbone(decoder)
        if weights != self.weights:
            raise CheckpointError(
                f"The calibration of {self.task!r} was made with other weights ({self.weights}) "
                f"than the LLM now has ({weights}), so it does not apply to them. Calibrate this "
                "model."
            )

    def save(self, path: Path) -> None:
        """Write a safetensors file.

        Raises:
            CheckpointError: The disk is full or can't be written.
        """
        write_matrix_file(path, self.squares, "calibration", self._about())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read such a file.

        Raises:
            CheckpointError: The file is missing or damaged, or holds something else.
        """

        def make(squares: dict[Matrix, Tensor], about: dict[str, Any]) -> Calibration:
            pruning = Pruning(**about.pop("pruning"))
            options = CalibrationOptions(**about.pop("reading"))
            ids = tuple(about.pop("sample_ids"))
            return cls(pruning=pruning, options=options, squares=squares, sample_ids=ids, **about)

        return read_matrix_file(path, "calibration", make)

    @property
    def digest(self) -> str:
        """A short hash of the calibration."""
        return digest_of_matrix_file(self.squares, self._about())

    def _about(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "pruning": asdict(self.pruning),
            "reading": asdict(self.options),  # what files have called the options from the start
            "sample_ids": list(self.sample_ids),
            "tokens": self.tokens,
            "weights": self.weights,
        }


@torch.no_grad()
def calibrate(
    backbone: Backbone,
    batches: Iterable[MultimodalBatch],
    pruning: Pruning = Pruning(),
    options: CalibrationOptions = CalibrationOptions(),
    task: str = "",
) -> Calibration:
    """Calibrate a model on the samples of a task; the model is left as it is.

    Args:
        backbone: The model.
        batches: The samples; 128 are usual.
        pruning: How weights are scored, and layers pruned.
        options: Which tokens are counted, and what the model is given.
        task: Name of the task.

    Raises:
        ConfigError: The score needs no calibration, or the model can't be pruned, or not to this
            pattern.
        DataError: No token is counted, or activations are not finite.
    """
    if not pruning.needs_calibration:
        raise ConfigError(
            f"The score {pruning.score!r} looks at no activations. Use SubNetwork.by_score instead."
        )
    linear = matrices(backbone)
    pruning.check_fits({matrix: module.weight for matrix, module in linear.items()})
    sums, tokens = _SquareSums(linear), 0
    ids: list[str] = []
    streams: list[StepwiseStream] = []
    for each in batches:
        shown, counted = options.cut(each.to(backbone.model.device))
        ids += each.sample_ids
        tokens += int(counted.sum())
        if options.sequential:
            streams.append(StepwiseStream.of(backbone, shown, counted))
        else:
            with hook_inputs(linear, partial(sums.add, counted)):
                run_layers_uncompiled(backbone, shown)
    if not tokens:
        raise DataError(
            f"None of the {len(ids)} samples of {task!r} has {options.tokens} tokens. Choose "
            "other tokens."
        )
    if options.sequential:
        _calibrate_layer_by_layer(backbone, streams, sums, pruning)
    squares = sums.on_cpu()
    weights = fingerprint_backbone(backbone.decoder)  # type: ignore[arg-type]  # a PreTrainedModel
    return Calibration(task, pruning, options, squares, tuple(ids), tokens, weights)


class _SquareSums:
    """Sums of squares of what enters linear layers.

    Attributes:
        squares: Matrix -> (in,) float64, on its layer's device.
    """

    def __init__(self, linear: Layers) -> None:
        self.squares: dict[Matrix, Tensor] = {}
        for matrix, module in linear.items():
            device = module.weight.device
            size = module.in_features
            self.squares[matrix] = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, counted: Tensor, matrix: Matrix, inputs: Tensor) -> None:
        """Add the inputs, (batch, sequence, in), at the positions that count."""
        self.squares[matrix] += inputs[counted.to(inputs.device)].double().square().sum(0)

    def on_cpu(self) -> dict[Matrix, Tensor]:
        """Return the sums on the CPU.

        Raises:
            DataError: A sum is not finite.
        """
        for matrix, sums in self.squares.items():
            if not sums.isfinite().all():
                raise DataError(
                    f"The inputs of {matrix} are not finite. Load the model in bfloat16 or float32."
                )
        return {matrix: sums.cpu() for matrix, sums in self.squares.items()}


def _calibrate_layer_by_layer(
    backbone: Backbone, streams: Sequence[StepwiseStream], sums: _SquareSums, pruning: Pruning
) -> None:
    """Add up what enters each layer after the pruned ones."""
    linear = matrices(backbone)
    for index, layer in enumerate(track(decoder_layers(backbone), "Calibrating layers")):
        own = {matrix: module for matrix, module in linear.items() if matrix.layer == index}
        for stream in streams:
            with hook_inputs(own, partial(sums.add, stream.counted)):
                stream.through(index, layer)

        def prune(own: Layers = own) -> Iterator[tuple[nn.Linear, Tensor]]:
            for matrix, module in own.items():
                yield module, pruning.kept(matrix, module.weight, sums.squares[matrix])

        with pruned_layers(prune()):
            for stream in streams:
                stream.hidden = stream.through(index, layer)
