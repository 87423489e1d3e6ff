"""A decoder layer in which some tokens skip a computation.

Skipped work is never done, rather than done and discarded: the rows of the other tokens are
gathered, computed and put back; the skipped ones keep their residual stream to the bit. In a layer
of Llama's kind, as in Mistral and Qwen2; Granite scales what is added:

    X' = X + SA(LN1(X))        input_layernorm, self_attn
    X' + FFN(LN2(X'))          post_attention_layernorm, mlp
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lightning_mllm.models.hooks import Arguments
from lightning_mllm.models.layers import layer_hidden_value, layer_mask_dtype, scale_added
from lightning_mllm.models.placement import layer_device


@dataclass(frozen=True)
class LayerSplit:
    """The rows of a forward: those that are computed, and those that are skipped.

    Attributes:
        skipped: (batch, rows) bool, which rows are skipped.
    """

    skipped: Tensor

    @cached_property
    def kept(self) -> Tensor:
        """(kept,) places, in the flattened (batch * rows), of the rows that are computed."""
        return (~self.skipped).flatten().nonzero().squeeze(1)

    @cached_property
    def columns(self) -> Tensor:
        """(batch, most) where the kept rows of each sequence are, in order, then any others."""
        most = int((~self.skipped).sum(1).max())
        return self.skipped.int().argsort(dim=1, stable=True)[:, :most]

    @cached_property
    def filled(self) -> Tensor:
        """(kept,) places, in the flattened (batch * most) of `columns`, of the kept rows."""
        return (~self.skipped.gather(1, self.columns)).flatten().nonzero().squeeze(1)

    def gather_rows(self, values: Tensor) -> Tensor:
        """Return the kept rows, (batch, most, width), of (batch or 1, rows, width) values."""
        index = self.columns[..., None].expand(-1, -1, values.shape[-1])
        return values.expand(len(index), -1, -1).gather(1, index)

    def scatter_rows(self, values: Tensor, over: Tensor) -> Tensor:
        """Put the kept rows, (batch, heads, most, width), into all, (batch, heads, rows, width)."""
        dump = over.shape[2]  # an extra row, for columns that are not those of a kept row
        target = self.columns.masked_fill(self.skipped.gather(1, self.columns), dump)
        index = target[:, None, :, None].expand_as(values)
        return nn.functional.pad(over, (0, 0, 0, 1)).scatter(2, index, values)[:, :, :dump]


@dataclass(frozen=True)
class AttendingLayer:
    """Which rows go through attention, and which keys they can attend to.

    Attributes:
        split: The rows of the forward.
        unseen: (batch, keys) bool, the keys that skip attention in this layer, cached ones too;
            None if the rows can attend to all keys.
    """

    split: LayerSplit
    unseen: Tensor | None


def run_layer(
    layer: Any,
    others: Arguments,
    attending: AttendingLayer | None,
    feeding: LayerSplit | None,
    hidden: Tensor,
) -> Tensor:
    """Return what leaves a layer.

    Args:
        layer: The decoder layer.
        others: What the layer is called with besides the residual stream.
        attending: The rows that go through attention; None for all.
        feeding: The rows that go through the FFN; None for all.
        hidden: (batch, rows, width), the residual stream.
    """
    if attending is None:
        attended = hidden + _attend_all(layer, layer.input_layernorm(hidden), others)
    else:
        attended = _attend(layer, others, attending, hidden)
    if feeding is None:
        return attended + _feed(layer, layer.post_attention_layernorm(attended))
    if not len(feeding.kept):
        return attended
    rows = attended.flatten(0, 1).index_select(0, feeding.kept)[None]  # as one sequence, for MoE
    fed = rows + _feed(layer, layer.post_attention_layernorm(rows))
    return _put_back(attended, feeding.kept, fed[0])


def run_layer_in_parallel(
    layer: Any, others: Arguments, split: LayerSplit, hidden: Tensor
) -> Tensor:
    """Return X + SA(LN1(X)) + FFN(LN1(X)) at skipped rows, and the layer's own output at others."""
    normed = layer.input_layernorm(hidden)
    attended = hidden + _attend_all(layer, normed, others)
    fed = torch.where(split.skipped[..., None], normed, layer.post_attention_layernorm(attended))
    return attended + _feed(layer, fed)


def run_layer_beside(
    layer: Any, others: Arguments, entering: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Return the mean of the outputs of two layers that get the same residual stream.

    What is added between the two (DeepStack) is added to the mean.

    Args:
        layer: The second layer.
        others: What the second layer is called with besides the residual stream.
        entering: What entered the first layer.
        first: What left the first layer.
        second: What would enter the second layer.
    """
    mean = (first + run_layer(layer, others, None, None, entering)) / 2
    return mean if second is first else mean + (second - first)


def layer_keys_and_values(
    attention: Any, keys: Tensor, values: Tensor, rotary: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return keys and values as attention gives them to its cache.

    Both are (batch, key heads, rows, head width).

    Args:
        attention: The layer's attention module.
        keys: (batch, rows, width), what leaves `k_proj`.
        values: (batch, rows, width), what leaves `v_proj`.
        rotary: Cosines and sines of the rows, each (batch or 1, rows, head width).
    """
    keys = keys.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    values = values.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    _, rotated = apply_rotary_pos_emb(keys, keys, *rotary)
    return rotated, values


def _attend_all(layer: Any, normed: Tensor, others: Arguments) -> Tensor:
    """Return what attention adds to the stream, of (batch, rows, width)."""
    return scale_added(layer, layer.self_attn(hidden_states=normed, **others)[0])


def _feed(layer: Any, normed: Tensor) -> Tensor:
    """Return what the FFN adds to the stream, of (batch, rows, width)."""
    return scale_added(layer, layer.mlp(normed))


def _attend(layer: Any, others: Arguments, attending: AttendingLayer, hidden: Tensor) -> Tensor:
    """Return the residual stream after attention; at skipped rows it is as it was."""
    split = attending.split
    cache = _Cache(layer, others, attending, hidden)
    if not split.columns.shape[1]:
        cache.fill()
        return hidden
    rows = split.gather_rows(hidden)
    past = cache.keys - hidden.shape[1]
    changed = {
        **others,
        "attention_mask": _mask(others.get("attention_mask"), attending, hidden, past),
        "position_embeddings": tuple(map(split.gather_rows, others["position_embeddings"])),
        "past_key_values": cache,
    }
    if others.get("position_ids") is not None:
        changed["position_ids"] = split.gather_rows(others["position_ids"][..., None]).squeeze(-1)
    rows = rows + _attend_all(layer, layer.input_layernorm(rows), changed)
    return _put_back(hidden, split.kept, rows.flatten(0, 1).index_select(0, split.filled))


def _put_back(stream: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """Return the stream, (batch, rows, width), its kept rows replaced by (kept, width) ones."""
    return stream.flatten(0, 1).index_copy(0, kept, rows.to(stream.dtype)).view_as(stream)


class _Cache:
    """Takes the place of a layer's cache; puts keys and values of gathered rows where they belong.

    Those of skipped rows are computed if others can attend to them; else they are zeros, which the
    mask hides.

    Args:
        layer: The decoder layer.
        others: What the layer is called with, the real cache included.
        attending: The rows, and the keys that they can attend to.
        hidden: (batch, rows, width), the residual stream of all rows.
    """

    def __init__(
        self, layer: Any, others: Arguments, attending: AttendingLayer, hidden: Tensor
    ) -> None:
        self._layer, self._attention = layer, layer.self_attn
        self._others, self._split, self._hidden = others, attending.split, hidden
        self._seen = attending.unseen is None
        self._real: Any = others.get("past_key_values")
        past = 0
        if self._real is not None:
            past = int(self._real.get_seq_length(self._attention.layer_idx))
        self.keys = past + hidden.shape[1]

    def update(
        self, keys: Tensor, values: Tensor, index: int, *positional: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values that the gathered rows attend to."""
        other_keys, other_values = self._make_skipped(keys.dtype, values.dtype)
        here, there = self._hidden.device, keys.device  # where attention computes
        all_keys = self._split.scatter_rows(keys.to(here), other_keys).to(there)
        all_values = self._split.scatter_rows(values.to(here), other_values).to(there)
        if self._real is None:
            return all_keys, all_values
        updated: tuple[Tensor, Tensor] = self._real.update(
            all_keys, all_values, index, *positional, **named
        )
        return updated

    def fill(self) -> None:
        """Put keys and values into the cache where all rows skip attention.

        So the cache has as many positions as without skipping.
        """
        if self._real is not None:
            dtype = layer_mask_dtype(self._hidden)
            made = (each.to(layer_device(self._layer)) for each in self._make_skipped(dtype, dtype))
            self._real.update(*made, self._attention.layer_idx)

    def _make_skipped(
        self, key_dtype: torch.dtype, value_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of skipped rows, (batch, key heads, rows, head width).

        They are 0 at other rows, and everywhere if no row can attend to them.
        """
        batch, count = self._split.skipped.shape
        heads, width = self._attention.config.num_key_value_heads, self._attention.head_dim
        size = (batch, heads, count, width)
        keys = self._hidden.new_zeros(size, dtype=key_dtype)
        values = self._hidden.new_zeros(size, dtype=value_dtype)
        if not self._seen:
            return keys, values
        rest = LayerSplit(~self._split.skipped)
        normed = self._layer.input_layernorm(rest.gather_rows(self._hidden))
        projected = (self._attention.k_proj(normed), self._attention.v_proj(normed))
        rotary = map(rest.gather_rows, self._others["position_embeddings"])
        own_keys, own_values = layer_keys_and_values(self._attention, *projected, rotary)
        keys = rest.scatter_rows(own_keys.to(key_dtype), keys)
        return keys, rest.scatter_rows(own_values.to(value_dtype), values)


def _mask(given: Tensor | None, attending: AttendingLayer, hidden: Tensor, past: int) -> Tensor:
    """Return the additive mask of the gathered rows, (batch, 1 or heads, most, keys)."""
    split, dtype = attending.split, layer_mask_dtype(hidden)
    batch, count = split.skipped.shape
    if given is None:
        causal = torch.ones(count, past + count, dtype=torch.bool, device=hidden.device)
        given = causal.tril(past)[None, None]
    if given.dtype == torch.bool:
        additive = torch.zeros(given.shape, dtype=dtype, device=hidden.device)
        given = additive.masked_fill_(~given, layer_hidden_value(dtype))
    index = split.columns[:, None, :, None].expand(-1, given.shape[1], -1, given.shape[3])
    mask = given.expand(batch, -1, -1, -1).gather(2, index)
    if attending.unseen is not None:
        mask = mask.masked_fill(attending.unseen[:, None, None], layer_hidden_value(dtype))
    return mask
