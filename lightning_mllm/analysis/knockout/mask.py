"""Attention knockout: while the `with` block lasts, some positions lose sight of others.

In the layers of a window the attention mask is replaced by an additive one, which hides from each target row the keys
of the source, besides what causality and padding hide anyway. The remaining weights renormalise. See Geva et al.,
"Dissecting Recall of Factual Associations" (2023), and for images Zhang et al., arXiv 2411.18620.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.analysis.knockout.block import Block, Positions
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import Arguments, before_layers
from lightning_mllm.models.layers import attention_of, decoder_layers, hidden_value, mask_dtype
from lightning_mllm.types import MultimodalBatch, TokenSpans

_NO_DENSE_MASK = ("flash", "flex", "paged")

logger = logging.getLogger(__name__)


@contextmanager
def knockout(
    backbone: Backbone, batch: MultimodalBatch | TokenSpans, blocks: Sequence[Block], window: Window
) -> Iterator[None]:
    """Block attention around anything that runs the model on this batch, `generate` included.

    Tokens behind the batch's, such as generated ones, are in no segment: they see everything. But the keys and values
    of earlier positions, cached or not, are those that the block left. Blocks can be nested: they add up. A block that
    hides nothing in any sample of the batch is told by a warning.

    Args:
        backbone: The model.
        batch: What it will be run on, or where that one's segments are; for `generate`, the `batch.prompts()`.
        blocks: They act together.
        window: The layers.

    Raises:
        ConfigError: At once: the attention implementation takes no dense mask, the model is compiled, or a layer or
            head does not exist. In the model's forward: the cache is static or slides, or a row would see nothing.
        DataError: The batch lacks the positions of a segment.
    """
    if any(module._compiled_call_impl is not None for module in backbone.model.modules()):
        raise ConfigError(
            "The model is compiled, and what was compiled before would run on without the block. Use a model that is "
            "not, or an engine, which runs the uncompiled forward."
        )
    with blocked(backbone, batch, blocks, window):
        spans = batch if isinstance(batch, TokenSpans) else batch.spans
        for block in blocks:
            source, target = positions(spans, block.source), positions(spans, block.target)
            if not reached(source, target).any():
                reason = why_nothing(block, bool(source.any()), bool(target.any()))
                logger.warning("%s blocks nothing in any of the %d samples: %s.", block, len(source), reason)
        yield


@contextmanager
def blocked(
    backbone: Backbone, batch: MultimodalBatch | TokenSpans, blocks: Sequence[Block], window: Window
) -> Iterator[None]:
    """Do the same around `model.forward(...)` only, whatever torch.compile made of the model."""
    check_attention(backbone)
    check_window(window, backbone)
    layers = decoder_layers(backbone)
    spans = batch if isinstance(batch, TokenSpans) else batch.spans
    mask = _Mask([_Hidden.of(block, spans, backbone) for block in blocks])
    with before_layers({index: layers[index] for index in range(window.start, window.stop)}, mask.replace):
        yield


def positions(spans: TokenSpans, wanted: Positions) -> Tensor:
    """Return the mask of positions, (batch, sequence).

    Raises:
        DataError: The batch was collated without one of their segments.
    """
    if lacking := wanted.segments.difference(spans.masks):
        raise DataError(
            f"The batch does not say where {str(min(lacking))!r} is; it has {', '.join(spans.masks)}. Collate it with "
            "this segment, or block others."
        )
    terms = [torch.stack([spans[segment] for segment in term]).all(dim=0) for term in wanted.terms]
    return torch.stack(terms).any(dim=0)


def reached(source: Tensor, target: Tensor) -> Tensor:
    """Return the target positions that could see a source position; all masks are (batch, sequence)."""
    return target & (source.cumsum(1) > 0)


def why_nothing(block: Block, has_source: bool, has_target: bool) -> str:
    """Say why a block hides nothing in any sample; whether any sample has a source and a target position."""
    if has_source and has_target:
        return f"{str(block.source)!r} is behind {str(block.target)!r} or in other samples, so it is not seen anyway"
    lacking = [str(side) for side, there in ((block.source, has_source), (block.target, has_target)) if not there]
    return f"none has {' or '.join(map(repr, lacking))}"


def check_attention(backbone: Backbone) -> None:
    """Refuse attention that is known to ignore or reject a dense mask.

    Raises:
        ConfigError: It is flash, flex or paged attention.
    """
    name = attention_of(backbone)
    if any(word in name for word in _NO_DENSE_MASK):
        raise ConfigError(
            f"Attention is blocked with a dense mask, which {name!r} ignores or rejects: nothing would be blocked. "
            "Load the model with attention=sdpa or attention=eager."
        )


def check_window(window: Window, backbone: Backbone) -> None:
    """Refuse layers that the decoder does not have.

    Raises:
        ConfigError: It hasn't these.
    """
    depth = len(decoder_layers(backbone))
    if not 0 <= window.start < window.stop <= depth:
        raise ConfigError(f"{window} can't be blocked: the decoder has the layers 0 to {depth - 1}.")


def head_mask(block: Block, backbone: Backbone) -> Tensor | None:
    """Return which heads the block is for, (heads,) bool; None for all.

    Raises:
        ConfigError: The decoder has no such head.
    """
    if block.heads is None:
        return None
    count: int = backbone.model.get_decoder().config.num_attention_heads
    if not block.heads or not all(0 <= head < count for head in block.heads):
        raise ConfigError(f"{block} names heads that don't exist: each layer has the heads 0 to {count - 1}.")
    mask = torch.zeros(count, dtype=torch.bool, device=backbone.model.device)
    mask[list(block.heads)] = True
    return mask


@dataclass(frozen=True)
class _Hidden:
    """A block as positions: `source` and `target` (batch, sequence), `heads` (heads,) or None for all."""

    block: Block
    source: Tensor
    target: Tensor
    heads: Tensor | None

    @classmethod
    def of(cls, block: Block, spans: TokenSpans, backbone: Backbone) -> _Hidden:
        device = backbone.model.device
        source, target = (positions(spans, each).to(device) for each in (block.source, block.target))
        return cls(block, source, target, head_mask(block, backbone))

    def pairs(self, rows: slice, keys: int, repeats: int) -> Tensor:
        """Return (batch, 1 or heads, rows, keys) bool: what is hidden from whom."""
        source, target = (_fit(each, keys).repeat_interleave(repeats, dim=0) for each in (self.source, self.target))
        pairs = (target[:, rows, None] & source[:, None])[:, None]
        return pairs if self.heads is None else pairs & self.heads[:, None, None]


@dataclass
class _Mask:
    """Makes the mask of a forward, once for all its layers."""

    hidden: Sequence[_Hidden]
    _last: tuple[tuple[object, ...], Tensor] | None = field(default=None, init=False)
    _given: object = field(default=None, init=False)  # held, so that its id stays its own

    def replace(self, layer: int, states: Tensor, arguments: Arguments) -> Arguments | None:
        """Return the layer's arguments with the other mask."""
        past = _past(arguments.get("past_key_values"), layer)
        length = self.hidden[0].source.shape[1] if self.hidden else past + 1
        if past >= length:  # behind the batch's own positions nothing is hidden
            return None
        given = arguments.get("attention_mask")
        key = (id(given), past, *states.shape[:2], mask_dtype(states))
        if self._last is None or self._last[0] != key:
            self._given, self._last = given, (key, self._build(given, states, past))
        return {**arguments, "attention_mask": self._last[1]}

    def _build(self, given: Tensor | None, states: Tensor, past: int) -> Tensor:
        rows = slice(past, past + states.shape[1])
        self._check_length(rows, len(states))
        mask = _additive(given, states, past)
        for each in self.hidden:
            pairs = each.pairs(rows, mask.shape[-1], len(states) // len(each.source))
            blocked = mask.masked_fill(pairs, hidden_value(mask.dtype))
            if (_blind(blocked) & ~_blind(mask)).any():
                raise ConfigError(
                    f"{each.block} hides everything that one of its rows can see, and attention to nothing is not "
                    "defined. Choose a smaller source, or a target that starts later."
                )
            mask = blocked
        return mask

    def _check_length(self, rows: slice, batch: int) -> None:
        for each in self.hidden:
            size, length = each.source.shape
            if batch % size or rows.stop < length:
                raise ConfigError(
                    f"The block is for {size} sequences of {length} positions, but the model is run on {batch} of "
                    f"{rows.stop}. Give the knockout the batch that the model gets; for generation, its prompts()."
                )


def _past(cache: Any, layer: int) -> int:
    """Return how many positions are in the cache before the layer adds its own."""
    if cache is None:
        return 0
    if cache.is_compileable or any(cache.is_sliding):
        raise ConfigError(
            f"Blocked keys are found by their position, which a {type(cache).__name__} does not keep. Generate with a "
            "dynamic cache (cache_implementation=None) and full attention, or with use_cache=False."
        )
    return int(cache.get_seq_length(layer))


def _additive(given: Tensor | None, states: Tensor, past: int) -> Tensor:
    """Return the mask that the layer was to get, additive, (batch or 1, 1, rows, keys); None means causal."""
    dtype, count = mask_dtype(states), states.shape[1]
    if given is not None and given.ndim != 4:
        raise ConfigError(
            f"A decoder layer gets an attention mask of shape {tuple(given.shape)} instead of (batch, 1, rows, keys). "
            "Load the model with attention=sdpa or attention=eager."
        )
    if given is not None and given.dtype != torch.bool:
        return given.to(torch.promote_types(given.dtype, dtype)).clamp(min=hidden_value(dtype)).to(dtype)
    if given is None:
        given = torch.ones(count, past + count, dtype=torch.bool, device=states.device).tril(past)[None, None]
    mask = torch.zeros(given.shape, dtype=dtype, device=states.device)
    return mask.masked_fill_(~given, hidden_value(dtype))


def _blind(mask: Tensor) -> Tensor:
    return mask.amax(-1) <= hidden_value(mask.dtype)


def _fit(mask: Tensor, length: int) -> Tensor:
    """Cut or fill up to a length; what follows the batch's own positions is in no segment."""
    return nn.functional.pad(mask, (0, max(0, length - mask.shape[1])))[:, :length]
