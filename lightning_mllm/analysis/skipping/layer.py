"""A decoder layer of which some rows skip something: what they skip is not computed, and then dropped, but left out.

The rows that go through are gathered, computed and put back; the others keep their residual stream to the bit. In a
layer of Llama's kind, as in Mistral and Qwen2:

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
from lightning_mllm.models.layers import hidden_value, mask_dtype


@dataclass(frozen=True)
class Split:
    """The rows of a forward, those that go through and those that do not.

    Attributes:
        skipped: (batch, rows) bool.
    """

    skipped: Tensor

    @cached_property
    def kept(self) -> Tensor:
        """(kept,) numbers, in the flattened (batch * rows), of the rows that go through."""
        return (~self.skipped).flatten().nonzero().squeeze(1)

    @cached_property
    def columns(self) -> Tensor:
        """(batch, most) where the kept rows of each sequence stand, in order; behind them any others."""
        most = int((~self.skipped).sum(1).max())
        return self.skipped.int().argsort(dim=1, stable=True)[:, :most]

    @cached_property
    def filled(self) -> Tensor:
        """(kept,) numbers, in the flattened (batch * most) of `columns`, of those that are kept rows."""
        return (~self.skipped.gather(1, self.columns)).flatten().nonzero().squeeze(1)

    def take(self, values: Tensor) -> Tensor:
        """Return (batch, most, width) of (batch or 1, rows, width) values."""
        index = self.columns[..., None].expand(-1, -1, values.shape[-1])
        return values.expand(len(index), -1, -1).gather(1, index)

    def spread(self, values: Tensor, over: Tensor) -> Tensor:
        """Put (batch, heads, most, width) of the kept rows into (batch, heads, rows, width) of all."""
        dump = over.shape[2]  # one row more, for what stands in no kept row's column
        target = self.columns.masked_fill(self.skipped.gather(1, self.columns), dump)
        index = target[:, None, :, None].expand_as(values)
        return nn.functional.pad(over, (0, 0, 0, 1)).scatter(2, index, values)[:, :, :dump]


@dataclass(frozen=True)
class Attending:
    """How the rows that go through attention see the others.

    Attributes:
        split: The rows.
        unseen: (batch, keys) bool, the keys that skip attention in this layer, cached ones too; None if all are seen.
    """

    split: Split
    unseen: Tensor | None


def run_layer(
    layer: Any, others: Arguments, attending: Attending | None, feeding: Split | None, hidden: Tensor
) -> Tensor:
    """Return what leaves a layer.

    Args:
        layer: The decoder layer.
        others: What it is called with besides the residual stream.
        attending: The rows that go through attention; None for all.
        feeding: The rows that go through the FFN; None for all.
        hidden: (batch, rows, width), the residual stream.
    """
    if attending is None:
        attended = hidden + _attention(layer, layer.input_layernorm(hidden), others)
    else:
        attended = _attend(layer, others, attending, hidden)
    if feeding is None:
        output: Tensor = attended + layer.mlp(layer.post_attention_layernorm(attended))
        return output
    if not len(feeding.kept):
        return attended
    rows = attended.flatten(0, 1).index_select(0, feeding.kept)
    return _put_back(attended, feeding.kept, rows + layer.mlp(layer.post_attention_layernorm(rows)))


def run_in_parallel(layer: Any, others: Arguments, split: Split, hidden: Tensor) -> Tensor:
    """Return X + SA(LN1(X)) + FFN(LN1(X)) at the rows that do not wait for attention, the layer's own at the others."""
    normed = layer.input_layernorm(hidden)
    attended = hidden + _attention(layer, normed, others)
    fed = torch.where(split.skipped[..., None], normed, layer.post_attention_layernorm(attended))
    output: Tensor = attended + layer.mlp(fed)
    return output


def run_beside(layer: Any, others: Arguments, entering: Tensor, first: Tensor) -> Tensor:
    """Return the mean of what two blocks make of the same residual stream.

    Args:
        layer: The second of them.
        others: What it is called with.
        entering: What entered the first.
        first: What left it.
    """
    return (first + run_layer(layer, others, None, None, entering)) / 2


def keys_and_values(attention: Any, keys: Tensor, values: Tensor, rotary: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return keys and values as attention hands them to its cache, (batch, key heads, rows, head width).

    Args:
        attention: The attention.
        keys: (batch, rows, width), what leaves `k_proj`.
        values: (batch, rows, width), what leaves `v_proj`.
        rotary: Cosines and sines of the rows, each (batch or 1, rows, head width).
    """
    keys, values = (each.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for each in (keys, values))
    _, turned = apply_rotary_pos_emb(keys, keys, *rotary)
    return turned, values


def _attention(layer: Any, normed: Tensor, others: Arguments) -> Tensor:
    output: Tensor = layer.self_attn(hidden_states=normed, **others)[0]
    return output


def _attend(layer: Any, others: Arguments, attending: Attending, hidden: Tensor) -> Tensor:
    """Return the residual stream behind attention, at skipped rows as it was."""
    split = attending.split
    cache = _Cache(layer, others, attending, hidden)
    if not split.columns.shape[1]:
        cache.fill()
        return hidden
    rows = split.take(hidden)
    past = cache.keys - hidden.shape[1]
    changed = {
        **others,
        "attention_mask": _mask(others.get("attention_mask"), attending, hidden, past),
        "position_embeddings": tuple(split.take(each) for each in others["position_embeddings"]),
        "past_key_values": cache,
    }
    if others.get("position_ids") is not None:
        changed["position_ids"] = split.take(others["position_ids"][..., None])[..., 0]
    rows = rows + _attention(layer, layer.input_layernorm(rows), changed)
    return _put_back(hidden, split.kept, rows.flatten(0, 1).index_select(0, split.filled))


def _put_back(stream: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """Return the stream, (batch, rows, width), with other kept rows, (kept, width)."""
    return stream.flatten(0, 1).index_copy(0, kept, rows.to(stream.dtype)).view_as(stream)


class _Cache:
    """Stands in for a layer's cache: the keys and values of gathered rows go where all rows' belong.

    Those of skipped rows are computed if they are seen, and else zeros, which the mask hides.

    Args:
        layer: The decoder layer.
        others: What it is called with, the real cache among it.
        attending: The rows.
        hidden: (batch, rows, width), all of them.
    """

    def __init__(self, layer: Any, others: Arguments, attending: Attending, hidden: Tensor) -> None:
        self._layer, self._attention = layer, layer.self_attn
        self._others, self._split, self._hidden = others, attending.split, hidden
        self._seen = attending.unseen is None
        self._real: Any = others.get("past_key_values")
        past = 0 if self._real is None else int(self._real.get_seq_length(self._attention.layer_idx))
        self.keys = past + hidden.shape[1]

    def update(self, keys: Tensor, values: Tensor, index: int, *positional: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values that the gathered rows attend to."""
        rest = self._of_skipped(keys.dtype, values.dtype)
        all_keys, all_values = map(self._split.spread, (keys, values), rest)
        if self._real is None:
            return all_keys, all_values
        updated: tuple[Tensor, Tensor] = self._real.update(all_keys, all_values, index, *positional, **named)
        return updated

    def fill(self) -> None:
        """Put the keys and values of rows into the cache that all skip attention: the positions stay in step."""
        if self._real is not None:
            dtype = mask_dtype(self._hidden)
            self._real.update(*self._of_skipped(dtype, dtype), self._attention.layer_idx)

    def _of_skipped(self, *dtypes: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys and values, right at skipped rows: (batch, key heads, rows, head width)."""
        batch, count = self._split.skipped.shape
        heads, width = self._attention.config.num_key_value_heads, self._attention.head_dim
        keys, values = (self._hidden.new_zeros(batch, heads, count, width, dtype=dtype) for dtype in dtypes)
        if not self._seen:
            return keys, values
        rest = Split(~self._split.skipped)
        normed = self._layer.input_layernorm(rest.take(self._hidden))
        projected = (self._attention.k_proj(normed), self._attention.v_proj(normed))
        rotary = map(rest.take, self._others["position_embeddings"])
        own_keys, own_values = keys_and_values(self._attention, *projected, rotary)
        return rest.spread(own_keys.to(keys.dtype), keys), rest.spread(own_values.to(values.dtype), values)


def _mask(given: Tensor | None, attending: Attending, hidden: Tensor, past: int) -> Tensor:
    """Return the additive mask of the gathered rows, (batch, 1 or heads, most, keys)."""
    split, dtype = attending.split, mask_dtype(hidden)
    batch, count = split.skipped.shape
    if given is None:
        given = torch.ones(count, past + count, dtype=torch.bool, device=hidden.device).tril(past)[None, None]
    if given.dtype == torch.bool:
        given = torch.zeros(given.shape, dtype=dtype, device=hidden.device).masked_fill_(~given, hidden_value(dtype))
    index = split.columns[:, None, :, None].expand(-1, given.shape[1], -1, given.shape[3])
    mask = given.expand(batch, -1, -1, -1).gather(2, index)
    if attending.unseen is not None:
        mask = mask.masked_fill(attending.unseen[:, None, None], hidden_value(dtype))
    return mask
