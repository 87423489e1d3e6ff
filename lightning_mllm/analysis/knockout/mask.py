"""Attention knockout: inside the `with` statement, some positions cannot attend to others.

In the layers of a window the attention mask is replaced by an additive one. It hides from each
target row the keys of the source, besides what causality and padding hide anyway. The remaining
attention weights are normalised again. See Geva et al., "Dissecting Recall of Factual
Associations" (2023), and for images Zhang et al., arXiv 2411.18620.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from lightning_mllm.analysis.core.positions import mask_positions
from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.forward.caches import positions_of_cache
from lightning_mllm.analysis.forward.hidden_keys import HiddenKeys, find_horizons
from lightning_mllm.analysis.knockout.block import Block
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import Arguments, hook_before_call, hook_before_layers
from lightning_mllm.models.layers import (
    attention_of_layers,
    decoder_layers,
    layer_hidden_value,
    layer_mask_dtype,
    layers_without_keys,
)

_NO_DENSE_MASK = ("flash", "flex", "paged")

logger = logging.getLogger(__name__)


@contextmanager
def knockout(
    backbone: Backbone,
    batch: MultimodalBatch | TokenSpans,
    blocks: Sequence[Block],
    window: Window,
) -> Iterator[None]:
    """Block attention around anything that runs the model on this batch, `generate` included.

    Tokens after the batch's own, such as generated ones, are in no segment: they attend to
    everything. But the keys and values of earlier positions, cached or not, are those that were
    computed with the blocks. Knockouts can be nested: their blocks add up. A block that hides
    nothing in any sample of the batch is reported by a warning.

    Args:
        backbone: The model.
        batch: What the model will be run on, or where the segments of that are. For `generate`,
            give `batch.prompts()`.
        blocks: What is blocked; all of them act together.
        window: The layers in which it is blocked.

    Raises:
        ConfigError: At once: the attention implementation takes no dense mask, the model is
            compiled, or a layer or head does not exist. In the model's forward: the cache is static
            or slides, or a row could attend to nothing.
        DataError: The batch lacks the positions of a segment.
    """
    if any(module._compiled_call_impl is not None for module in backbone.model.modules()):
        raise ConfigError(
            "The model is compiled, and what was compiled before would run on without the block. "
            "Use a model that is not, or an engine, which runs the uncompiled forward."
        )
    check_mask_attention(backbone)
    check_mask_window(window, backbone)
    spans = batch if isinstance(batch, TokenSpans) else batch.spans
    hidden = [masked_keys(block, spans, backbone).within(window) for block in blocks]
    with mask_keys(backbone, hidden, window):
        for block, keys in zip(blocks, hidden, strict=True):
            if not keys.acts.any():
                reason = why_mask_is_empty(block, bool(keys.source.any()), bool(keys.target.any()))
                logger.warning(
                    "%s blocks nothing in any of the %d samples: %s.",
                    block,
                    len(keys.source),
                    reason,
                )
        yield


@contextmanager
def mask_keys(backbone: Backbone, hidden: Sequence[HiddenKeys], window: Window) -> Iterator[None]:
    """Hide keys in the layers of a window, around `model.forward(...)` only; nothing is checked."""
    layers = decoder_layers(backbone)
    within = {index: layers[index] for index in range(window.start, window.stop)}
    maker = _MaskMaker(hidden)
    with (
        hook_before_call(backbone.decoder, maker.begin),
        hook_before_layers(within, maker.replace_mask),
    ):
        yield


def masked_keys(block: Block, spans: TokenSpans, backbone: Backbone) -> HiddenKeys:
    """Find the positions of a block.

    Raises:
        ConfigError: The decoder has no such head.
        DataError: The batch lacks the positions of a segment.
    """
    device = backbone.model.device
    source, target = (
        mask_positions(spans, each).to(device) for each in (block.source, block.target)
    )
    horizon = find_horizons(backbone.family.sees, spans)
    if horizon is not None:
        horizon = horizon.to(device)
    return HiddenKeys(source, target, _head_mask(block, backbone), str(block), horizon)


def why_mask_is_empty(block: Block, has_source: bool, has_target: bool) -> str:
    """Say why a block hides nothing in any sample.

    Args:
        block: What is blocked.
        has_source: Whether any sample has a source position.
        has_target: Whether any sample has a target position.
    """
    source, target = repr(str(block.source)), repr(str(block.target))
    if has_source and has_target:
        return (
            f"{source} comes after {target} or is in other samples, so it is not attended to anyway"
        )
    lacking = [side for side, there in ((source, has_source), (target, has_target)) if not there]
    return f"none has {' or '.join(lacking)}"


def check_mask_attention(backbone: Backbone) -> None:
    """Refuse attention that is known to ignore or reject a dense mask, and layers without keys.

    Raises:
        ConfigError: It is flash, flex or paged attention, or layers have no keys to hide.
    """
    if lacking := layers_without_keys(backbone):
        raise refusal(
            backbone,
            "Attention knockout",
            f"its LLM mixes tokens without keys in layers {', '.join(map(str, lacking))}, so that "
            "none can be hidden",
            "Use a model whose layers all have attention, such as qwen2_5_vl.",
        )
    name = attention_of_layers(backbone)
    if any(word in name for word in _NO_DENSE_MASK):
        raise ConfigError(
            f"Attention is blocked with a dense mask, which {name!r} ignores or rejects: nothing "
            "would be blocked. Load the model with attention=sdpa or attention=eager."
        )


def check_mask_window(window: Window, backbone: Backbone) -> None:
    """Refuse layers that the decoder does not have.

    Raises:
        ConfigError: It hasn't these.
    """
    depth = len(decoder_layers(backbone))
    if not 0 <= window.start < window.stop <= depth:
        raise ConfigError(
            f"{window} can't be blocked: the decoder has the layers 0 to {depth - 1}."
        )


def _head_mask(block: Block, backbone: Backbone) -> Tensor | None:
    """Return in which heads a block acts, (layers, heads) bool; None for all."""
    if block.in_all_heads:
        return None
    depth, count = len(decoder_layers(backbone)), count_mask_heads(backbone)
    places = block.places or [*product(range(depth), block.heads or ())]
    if not places or not all(k < depth and 0 <= head < count for k, head in places):
        raise ConfigError(
            f"{block} names heads that don't exist: each layer has the heads 0 to {count - 1}, and "
            f"there are layers 0 to {depth - 1}."
        )
    mask = torch.zeros(depth, count, dtype=torch.bool, device=backbone.model.device)
    for layer, head in places:
        mask[layer, head] = True
    return mask


def count_mask_heads(backbone: Backbone) -> int:
    """Return how many attention heads each layer has."""
    count: int = backbone.model.get_decoder().config.num_attention_heads
    return count


@dataclass
class _MaskMaker:
    """Makes the mask of a forward, once for all its layers."""

    hidden: Sequence[HiddenKeys]
    _last: tuple[tuple[object, ...], Tensor] | None = field(default=None, init=False)
    _given: object = field(default=None, init=False)  # held, so that no other has its id
    # positions cached before this forward; a layer behind dropped tokens has fewer
    _past: int = field(default=0, init=False)

    def begin(self, arguments: Arguments) -> None:
        """Find out how many positions are cached, before each decoder pass."""
        self._past = positions_of_cache(arguments.get("past_key_values"))

    def replace_mask(self, layer: int, states: Tensor, arguments: Arguments) -> Arguments | None:
        """Return the layer's arguments with the other mask."""
        past = self._past
        length = self.hidden[0].source.shape[1] if self.hidden else past + 1
        if past >= length:  # after the batch's own positions nothing is hidden
            return None
        given = arguments.get("attention_mask")
        heads = tuple(keys.heads_at(layer) for keys in self.hidden)
        key = (id(given), past, *states.shape[:2], layer_mask_dtype(states), heads)
        if self._last is None or self._last[0] != key:
            self._given, self._last = given, (key, self._build(given, states, past, layer))
        return {**arguments, "attention_mask": self._last[1]}

    def _build(self, given: Tensor | None, states: Tensor, past: int, layer: int) -> Tensor:
        rows = slice(past, past + states.shape[1])
        self._check_length(rows, len(states))
        mask = _additive_mask(given, states, past)
        for keys in self.hidden:
            repeats = len(states) // len(keys.source)
            pairs = keys.pairs(rows, mask.shape[-1], repeats, layer)
            blocked = mask.masked_fill(pairs, layer_hidden_value(mask.dtype))
            if (_sees_nothing(blocked) & ~_sees_nothing(mask)).any():
                raise ConfigError(
                    f"{keys.name} hides everything that one of its rows can attend to, and "
                    "attention to nothing is not defined. Choose a smaller source, or a target "
                    "that starts later."
                )
            mask = blocked
        return mask

    def _check_length(self, rows: slice, batch: int) -> None:
        for keys in self.hidden:
            size, length = keys.source.shape
            if batch % size or rows.stop < length:
                raise ConfigError(
                    f"The block is for {size} sequences of {length} positions, but the model is "
                    f"run on {batch} of {rows.stop}. Give the knockout the batch that the model "
                    "gets; for generation, its prompts()."
                )


def _additive_mask(given: Tensor | None, states: Tensor, past: int) -> Tensor:
    """Return the mask that the layer was to get as an additive one.

    Args:
        given: The layer's own; None means causal.
        states: What enters the layer, (batch, rows, width).
        past: How many positions are cached.

    Returns:
        (batch or 1, 1, rows, keys).
    """
    dtype, count = layer_mask_dtype(states), states.shape[1]
    if given is not None and given.ndim != 4:
        raise ConfigError(
            f"A decoder layer gets an attention mask of shape {tuple(given.shape)} instead of "
            "(batch, 1, rows, keys). Load the model with attention=sdpa or attention=eager."
        )
    if given is not None and given.dtype != torch.bool:
        exact = given.to(torch.promote_types(given.dtype, dtype))
        return exact.clamp(min=layer_hidden_value(dtype)).to(dtype)
    if given is None:
        every = torch.ones(count, past + count, dtype=torch.bool, device=states.device)
        given = every.tril(past)[None, None]
    mask = torch.zeros(given.shape, dtype=dtype, device=states.device)
    return mask.masked_fill_(~given, layer_hidden_value(dtype))


def _sees_nothing(mask: Tensor) -> Tensor:
    """Return from which rows of an additive mask everything is hidden."""
    return mask.amax(-1) <= layer_hidden_value(mask.dtype)
