"""Steering: while the `with` block lasts, a vector is added to the states of some positions.

X is the residual stream in front of a layer, and m says which positions are steered. Within the
block X + scale * m * v enters the layer instead of X. A vector can be the difference between the
mean states of two classes, or between those of a model after and before fine-tuning (shift vector,
Khayatan et al., "Analyzing Finetuning Representation Shift for Multimodal LLMs Steering", 2025,
arXiv 2501.03012).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from lightning_mllm.analysis.steering.steer import find_steer_positions
from lightning_mllm.analysis.steering.vector import SteeringVector, vector_width
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import Arguments, hook_before_call, hook_stream
from lightning_mllm.models.layers import layers_and_norm

logger = logging.getLogger(__name__)


@contextmanager
def steering(
    backbone: Backbone,
    batch: MultimodalBatch | TokenSpans,
    vector: SteeringVector | Tensor,
    at: str,
    layers: Sequence[int],
    *,
    scale: float = 1.0,
) -> Iterator[None]:
    """Add a vector around anything that runs the model on this batch, `generate` included.

    Tokens after the batch's own, such as generated ones, are not steered. But what is cached of the
    prompt is what was computed with the vector, so that generation with a cache is generation
    without one. Blocks of steering, knockout and skipping nest. With `scale` 0 the model is itself,
    to the bit.

    Args:
        backbone: The model.
        batch: What the model will be run on, or where the segments of that are. For `generate`,
            give `batch.prompts()`.
        vector: What is added. Of a `SteeringVector` each layer gets the entry that was read in
            front of it; a tensor, (width,), is the same for all.
        at: The segments whose positions are steered, e.g. "image object" or "question+last".
        layers: In front of which layers it is added, from 0; the number of layers itself stands for
            the final norm.
        scale: What the vector is multiplied by.

    Raises:
        ConfigError: At once: a layer or segment does not exist, the vector is of another model, or
            the model is compiled. In the model's forward: it is run on another batch.
        DataError: The batch lacks the positions of a segment.
    """
    entered = dict(enumerate(layers_and_norm(backbone)))
    _check_model(backbone)
    if not layers or not entered.keys() >= {*layers}:
        raise ConfigError(
            f"A vector can't be added in front of layers {list(layers)}: there are 0 to "
            f"{len(entered) - 2}, and {len(entered) - 1} for the final norm."
        )
    if isinstance(vector, SteeringVector):
        vector.check_fits(backbone)
    else:
        _check_width(vector, backbone)
    spans = batch if isinstance(batch, TokenSpans) else batch.spans
    positions = find_steer_positions(spans, at).to(backbone.model.device)
    if not positions.any():
        logger.warning(
            "No position of the %d samples is in %r: nothing is steered.", *_of(spans, at)
        )
    if not scale:
        yield
        return
    rows = _SteeredRows(positions)
    with ExitStack() as hooks:
        hooks.enter_context(hook_before_call(backbone.decoder, rows.begin))
        for layer in sorted({*layers}):
            own = vector.states[layer] if isinstance(vector, SteeringVector) else vector
            hooks.enter_context(hook_stream(entered[layer], partial(rows.add, scale * own)))
        yield


def add_at_positions(hidden: Tensor, positions: Tensor, added: Tensor) -> Tensor:
    """Return states with a vector added at some positions; the others are the same to the bit.

    Args:
        hidden: (batch, rows, width).
        positions: (batch, rows) bool.
        added: (width,) or (batch, 1, width).
    """
    added = added.to(hidden.device, hidden.dtype)
    return torch.where(positions[..., None].to(hidden.device), hidden + added, hidden)


class _SteeredRows:
    """Finds, in each forward, which of its rows are steered.

    Args:
        positions: (batch, sequence) bool.
    """

    def __init__(self, positions: Tensor) -> None:
        self._positions, self._past = positions, 0

    def begin(self, arguments: Arguments) -> None:
        """Find out from which position on the decoder is run."""
        cache = arguments.get("past_key_values")
        self._past = 0 if cache is None else int(cache.get_seq_length())

    def add(self, added: Tensor, hidden: Tensor) -> Tensor:
        """Return the stream with the vector in it."""
        (size, length), (batch, count) = self._positions.shape, hidden.shape[:2]
        stop = self._past + count
        if batch % size or stop < length:
            raise ConfigError(
                f"`steering` was given {size} sequences of {length} positions, but the model is "
                f"run on {batch} of {stop}. Give it the batch that the model gets; for generation, "
                "its prompts()."
            )
        if self._past >= length:  # after the batch's own positions nothing is steered
            return hidden
        chosen = torch.zeros(size, count, dtype=torch.bool, device=self._positions.device)
        chosen[:, : length - self._past] = self._positions[:, self._past :]
        return add_at_positions(hidden, chosen.repeat_interleave(batch // size, dim=0), added)


def _check_model(backbone: Backbone) -> None:
    if any(module._compiled_call_impl is not None for module in backbone.model.modules()):
        raise ConfigError(
            "The model is compiled, and what was compiled before would run on without the vector. "
            "Use a model that is not compiled."
        )


def _check_width(vector: Tensor, backbone: Backbone) -> None:
    width = vector_width(backbone)
    if vector.shape != (width,):
        raise ConfigError(
            f"The vector is of shape {tuple(vector.shape)}, but the stream of this model is "
            f"{width} wide. Give a tensor of shape ({width},)."
        )


def _of(spans: TokenSpans, at: str) -> tuple[int, str]:
    """Return the number of samples, and the segments, for a message."""
    return len(next(iter(spans.masks.values()))), at
