"""Calibration: how strongly the tokens of some samples drive each input of each matrix of the LLM.

Of each matrix the sums of squares of its inputs over the counted tokens are kept, (in,) in float64: padding never
counts, so that neither its length nor the composition of batches matters, but for rounding.

By default a block is pruned before the next one is calibrated, as by Wanda: the later block sees what the pruned one
passes on. That needs the residual stream of all samples at once, (samples, positions, width). Without it
(`sequential=False`) one pass over the data does, in memory that does not grow with their number.

Whose tokens are counted, and what they see (Shukor and Cord, arXiv 2405.16700): with `context="own"`, as in the paper,
the LLM gets nothing but the counted tokens, and the sequence's first token, on which attention rests, which counts only
if it is one of them. With `context="full"` they are counted where they stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.forward.stepwise import Stream, forward
from lightning_mllm.analysis.subnetwork.mask import SubNetwork, masked
from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.analysis.subnetwork.tensor_files import digest, read_tensors, write_tensors
from lightning_mllm.errors import CheckpointError, ConfigError, DataError
from lightning_mllm.models.backbone import Backbone, fingerprint
from lightning_mllm.models.hooks import inputs_of
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.types import IGNORE_INDEX, MultimodalBatch, Segment

Tokens = Literal["perceptual", "textual", "both"]
Context = Literal["own", "full"]
Layers = Mapping[Matrix, nn.Linear]


@dataclass(frozen=True)
class Reading:
    """What is read, and how.

    Attributes:
        tokens: Which are counted: those of images, of text, or both.
        context: What they see: each other only (`own`), or the whole sequence (`full`).
        sequential: Whether each block is pruned before the next one is calibrated.
        before_image: Whether text before the first image, such as the system's, counts as text.
        answers: Whether answers do.
    """

    tokens: Tokens = "both"
    context: Context = "own"
    sequential: bool = True
    before_image: bool = True
    answers: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("tokens", self.tokens, get_args(Tokens)),
            ("context", self.context, get_args(Context)),
        ):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}; it can be {', '.join(known)}.")

    @property
    def needs_images(self) -> bool:
        """Whether nothing is counted in samples without an image."""
        return self.tokens == "perceptual" or not self.before_image

    def counted(self, batch: MultimodalBatch) -> Tensor:
        """Return which positions count, (batch, sequence) bool."""
        sets = TokenSets(before_image=self.before_image, answers=self.answers, sink_ratio=None)
        perceptual, textual = sets.of(batch).unbind(1)
        return {"perceptual": perceptual, "textual": textual, "both": perceptual | textual}[self.tokens]

    def shown(self, batch: MultimodalBatch) -> tuple[MultimodalBatch, Tensor]:
        """Return what the LLM gets, and which of its positions count, (batch, sequence) bool.

        What the LLM is not to see is cut out, not masked: a sliding window reaches over what is masked.
        """
        counted = self.counted(batch)
        if self.context == "full":
            return batch, counted
        real = batch.attention_mask.bool()
        first = real & (real.cumsum(1) == 1)
        if self.tokens == "textual":  # an image's token is nothing without the image
            first &= ~batch.spans[Segment.IMAGE]
        seen = counted | first
        index = (~seen).int().argsort(dim=1, stable=True)[:, : int(seen.sum(1).max())]
        seen = seen.gather(1, index)
        shown = replace(
            batch,
            input_ids=batch.input_ids.gather(1, index).where(seen, batch.pad_id),
            attention_mask=seen.to(batch.attention_mask.dtype),
            labels=batch.labels.gather(1, index).where(seen, IGNORE_INDEX),
            spans=batch.spans.take(index, seen),
        )
        if self.tokens == "textual":  # then no image is seen
            shown = replace(shown, vision={}, image_counts=(0,) * len(batch))
        return shown, counted.gather(1, index) & seen


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a model's matrices get to see on a task; with the model's weights it says which of them are kept.

    Attributes:
        task: Name of the task.
        pruning: By which the weights are scored; with `reading.sequential` earlier blocks were pruned by it.
        reading: What was read.
        squares: Matrix -> (in,) float64 on the CPU, sums of squares of its inputs over the counted tokens.
        sample_ids: Of the samples.
        tokens: How many were counted.
        weights: Fingerprint of the LLM.
    """

    task: str
    pruning: Pruning
    reading: Reading
    squares: Mapping[Matrix, Tensor]
    sample_ids: tuple[str, ...]
    tokens: int
    weights: str

    def subnetwork(self, backbone: Backbone) -> SubNetwork:
        """Return the weights that are kept: those that were, where blocks were pruned one after the other.

        Raises:
            CheckpointError: The model is not the one that was calibrated.
        """
        self.check_fits(backbone)
        return SubNetwork.by_score(self.task, backbone, self.pruning, self.squares)

    def check_fits(self, backbone: Backbone) -> None:
        """Refuse a model with other weights.

        Raises:
            CheckpointError: It has others.
        """
        if (weights := fingerprint(backbone.decoder)) != self.weights:  # type: ignore[arg-type]  # a PreTrainedModel
            raise CheckpointError(
                f"The calibration of {self.task!r} was made with other weights ({self.weights}) than the LLM now has "
                f"({weights}), of which it says nothing. Calibrate this model."
            )

    def save(self, path: Path) -> None:
        """Write a safetensors file.

        Raises:
            CheckpointError: The disk is full or can't be written.
        """
        write_tensors(path, self.squares, "calibration", self._about())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read such a file.

        Raises:
            CheckpointError: The file is missing or damaged, or holds something else.
        """

        def make(squares: dict[Matrix, Tensor], about: dict[str, Any]) -> Calibration:
            pruning, reading = Pruning(**about.pop("pruning")), Reading(**about.pop("reading"))
            ids = tuple(about.pop("sample_ids"))
            return cls(pruning=pruning, reading=reading, squares=squares, sample_ids=ids, **about)

        return read_tensors(path, "calibration", make)

    @property
    def digest(self) -> str:
        """A short hash of all of it."""
        return digest(self.squares, self._about())

    def _about(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "pruning": asdict(self.pruning),
            "reading": asdict(self.reading),
            "sample_ids": list(self.sample_ids),
            "tokens": self.tokens,
            "weights": self.weights,
        }


@torch.no_grad()
def calibrate(
    backbone: Backbone,
    batches: Iterable[MultimodalBatch],
    pruning: Pruning = Pruning(),
    reading: Reading = Reading(),
    task: str = "",
) -> Calibration:
    """Calibrate a model on the samples of a task; the model is left as it is.

    Args:
        backbone: The model.
        batches: The samples; 128 are usual.
        pruning: How weights are scored, and blocks pruned.
        reading: What is read.
        task: Name of the task.

    Raises:
        ConfigError: The score needs no calibration, or the model can't be pruned, or not to this pattern.
        DataError: No token is counted, or activations are not finite.
    """
    if not pruning.needs_calibration:
        raise ConfigError(f"The score {pruning.score!r} looks at no activations. Use SubNetwork.by_score instead.")
    linear, tokens = matrices(backbone), 0
    pruning.check_fits({matrix: module.weight for matrix, module in linear.items()})
    sums, ids, streams = _Sums(linear), list[str](), list[Stream]()
    for batch in (each.to(backbone.model.device) for each in batches):
        shown, counted = reading.shown(batch)
        ids, tokens = [*ids, *batch.sample_ids], tokens + int(counted.sum())
        if reading.sequential:
            streams.append(Stream.of(backbone, shown, counted))
        else:
            with inputs_of(linear, partial(sums.add, counted)):
                forward(backbone, shown)
    if not tokens:
        raise DataError(f"None of the {len(ids)} samples of {task!r} has {reading.tokens} tokens. Choose other tokens.")
    if reading.sequential:
        _block_by_block(backbone, streams, sums, pruning)
    squares = sums.on_cpu()
    weights = fingerprint(backbone.decoder)  # type: ignore[arg-type]  # a PreTrainedModel
    return Calibration(task, pruning, reading, squares, tuple(ids), tokens, weights)


class _Sums:
    """Sums of squares of what enters linear layers.

    Attributes:
        squares: Matrix -> (in,) float64, on its layer's device.
    """

    def __init__(self, linear: Layers) -> None:
        self.squares = {
            matrix: torch.zeros(module.in_features, dtype=torch.float64, device=module.weight.device)
            for matrix, module in linear.items()
        }

    def add(self, counted: Tensor, matrix: Matrix, inputs: Tensor) -> None:
        """Add the inputs, (batch, sequence, in), at the positions that count."""
        self.squares[matrix] += inputs[counted].double().square().sum(0)

    def on_cpu(self) -> dict[Matrix, Tensor]:
        """Return them.

        Raises:
            DataError: One is not finite.
        """
        for matrix, sums in self.squares.items():
            if not sums.isfinite().all():
                raise DataError(f"The inputs of {matrix} are not finite. Load the model in bfloat16 or float32.")
        return {matrix: sums.cpu() for matrix, sums in self.squares.items()}


def _block_by_block(backbone: Backbone, streams: Sequence[Stream], sums: _Sums, pruning: Pruning) -> None:
    """Add up what enters each block behind the pruned ones."""
    linear = matrices(backbone)
    for index, layer in enumerate(decoder_layers(backbone)):
        own = {matrix: module for matrix, module in linear.items() if matrix.layer == index}
        for stream in streams:
            with inputs_of(own, partial(sums.add, stream.counted)):
                stream.through(index, layer)
        kept = ((m, pruning.kept(matrix, m.weight, sums.squares[matrix])) for matrix, m in own.items())
        with masked(kept):
            for stream in streams:
                stream.hidden = stream.through(index, layer)
