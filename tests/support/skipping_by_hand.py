"""A decoder that skips by brute force: all is computed, for all rows, and then left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.analysis.skipping.choice import (
    choose_after_prompts,
    choose_in_prompts,
)
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment


def chosen_columns(batch: MultimodalBatch, skip: Skip, layer: int) -> Tensor:
    """Which positions of a batch are chosen, found sample by sample: (batch, sequence) bool."""
    tokens = SampleTokens.of(batch)
    drawn = choose_in_prompts(tokens, skip, layer)
    behind = choose_after_prompts(tokens, skip, layer, batch.input_ids.shape[1])
    found = torch.zeros_like(batch.attention_mask, dtype=torch.bool)
    for row in range(len(batch)):
        columns = batch.attention_mask[row].nonzero()[:, 0].tolist()
        length = columns.index(int(batch.spans[Segment.LAST][row].nonzero())) + 1
        image = batch.spans[Segment.IMAGE][row]
        kinds = ["perceptual" if image[column] else "textual" for column in columns[:length]]
        wanted = [k for k, kind in enumerate(kinds) if skip.tokens in ("all", kind)]
        in_prompt = spaced(len(wanted), skip.share) if skip.choice == "strided" else None
        chosen = (
            [k for k in wanted if drawn[row, k]]
            if in_prompt is None
            else [wanted[k] for k in in_prompt]
        )
        generated = len(columns) - length
        later = spaced(generated, skip.share)
        if skip.choice == "random":
            later = [k for k in range(generated) if behind[row, k]]
        places = chosen if skip.phase != "decode" else []
        if skip.phase != "prefill" and skip.tokens != "perceptual":
            places = [*places, *(length + k for k in later)]
        found[row, [columns[k] for k in places]] = True
    return found


def spaced(count: int, share: float) -> list[int]:
    """Every 1 / share-th of so many."""
    return [
        k for k in range(count) if math.floor((k + 1) * share + 1e-9) > math.floor(k * share + 1e-9)
    ]


def reference_states(backbone: Backbone, batch: MultimodalBatch, skip: Skip) -> list[Tensor]:
    """What leaves each layer, un-normed, (batch, sequence, width)."""
    model: Any = backbone.model
    decoder: Any = backbone.decoder
    hidden = model(
        **batch.model_inputs(), output_hidden_states=True, use_cache=False
    ).hidden_states[0]
    real = batch.attention_mask.bool()
    cos, sin = decoder.rotary_emb(hidden, batch.position_ids)
    affected = skip.layers(len(decoder.layers))
    states: list[Tensor] = []
    entering = hidden
    for index, layer in enumerate(decoder.layers):
        second = skip.computation == "parallel_blocks" and index - 1 in affected
        chosen = torch.zeros_like(real)
        if index in affected and skip.computation != "parallel_blocks":
            chosen = chosen_columns(batch, skip, index)
        if second:
            alone = _layer(layer, skip, entering, chosen, (real, cos, sin))
            entering, hidden = hidden, (hidden + alone) / 2
        else:
            entering, hidden = hidden, _layer(layer, skip, hidden, chosen, (real, cos, sin))
        states.append(hidden)
    return states


def reference_logits(backbone: Backbone, batch: MultimodalBatch, skip: Skip) -> Tensor:
    """(batch, sequence, vocabulary)."""
    norm: Any = backbone.decoder.norm
    logits: Tensor = backbone.lm_head(norm(reference_states(backbone, batch, skip)[-1]))
    return logits


def _layer(
    layer: Any, skip: Skip, hidden: Tensor, chosen: Tensor, places: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    real, cos, sin = places
    skips_attention = skip.computation in ("block", "attention")
    unseen = chosen if skips_attention and not skip.visible else torch.zeros_like(chosen)
    normed = layer.input_layernorm(hidden)
    attended = hidden + _attention(layer.self_attn, normed, real & ~unseen, cos, sin)
    if skips_attention:
        attended = torch.where(chosen[..., None], hidden, attended)
    fed = layer.post_attention_layernorm(attended)
    if skip.computation == "parallel":
        fed = torch.where(chosen[..., None], normed, fed)
    output: Tensor = attended + layer.mlp(fed)
    if skip.computation in ("block", "ffn"):
        output = torch.where(chosen[..., None], attended, output)
    return output


def _attention(attention: Any, normed: Tensor, seen: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = (each * cos[:, None] + _turned(each) * sin[:, None] for each in (query, key))
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    length = normed.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & seen[:, None]
    allowed = allowed | torch.eye(
        length, dtype=torch.bool
    )  # padding, and rows that are left out, see themselves
    scores = (query @ key.transpose(2, 3) / math.sqrt(attention.head_dim)).masked_fill(
        ~allowed[:, None], -torch.inf
    )
    mixed: Tensor = attention.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    return mixed


def _turned(values: Tensor) -> Tensor:
    first, second = values.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def at(states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """The states of all layers at some positions."""
    return torch.stack([each[mask] for each in states])
