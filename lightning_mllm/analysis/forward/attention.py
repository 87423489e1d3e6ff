"""Attention weights of some rows, layer by layer, while the model runs as it always does.

Eager attention computes the weights of all rows: heads x sequence^2 numbers per layer, and a slower
forward. Here those of the chosen rows are computed from the queries and keys of each layer's own
call (`models.attention_calls`), shown, and let go. A model that was loaded with eager attention has
all weights anyway; of those the chosen rows are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.attention_calls import (
    AttentionCall,
    EagerAttention,
    hook_attention_calls,
)
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_outputs
from lightning_mllm.models.layers import (
    attention_of_layers,
    decoder_layers,
    layers_without_keys,
)

ObserveAttention = Callable[[int, Tensor], None]
_NAMES = ("self_attn", "attention")  # of a layer's attention module


@dataclass(frozen=True, eq=False)
class QueryRows:
    """The rows of a batch whose attention weights are wanted.

    Attributes:
        index: (batch, chosen), their positions.
        valid: (batch, chosen) bool, False where a sample has fewer rows than another; the weights
            there are 0.
        length: Number of positions of the batch.
    """

    index: Tensor
    valid: Tensor
    length: int

    @classmethod
    def of(cls, mask: Tensor) -> QueryRows:
        """Return the rows of a mask, (batch, sequence) bool, in order."""
        most = max(1, int(mask.sum(1).max()))
        index = mask.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
        return cls(index, mask.gather(1, index), mask.shape[1])


def check_attention_weights(backbone: Backbone, layers: Sequence[int] | None = None) -> None:
    """Refuse a model whose attention weights can't be computed.

    Args:
        backbone: The model.
        layers: The layers whose weights are wanted; None for all.

    Raises:
        ConfigError: Its attention has another implementation than sdpa or eager, or sink logits; or
            one of the layers has no attention to keys.
    """
    numbers = range(len(decoder_layers(backbone))) if layers is None else layers
    if lacking := sorted({*layers_without_keys(backbone)} & {*numbers}):
        raise refusal(
            backbone,
            "Looking at attention weights",
            f"its LLM mixes tokens without keys in layers {', '.join(map(str, lacking))}, so that "
            "there are no weights",
            "Use a model whose layers all have attention, such as qwen2_5_vl.",
        )
    if (name := attention_of_layers(backbone)) not in ("sdpa", "eager"):
        raise ConfigError(
            "Attention weights are computed with the mask that sdpa or eager attention gets, and "
            f"{name!r} gets another. Load the model with attention=sdpa."
        )
    for number in numbers:
        if getattr(_find_attention(backbone, number), "sinks", None) is not None:
            raise _refuse_layer(backbone, number, "gives a part of it to no token (sink logits)")


@contextmanager
def observe_attention(
    backbone: Backbone,
    rows: QueryRows,
    observe: ObserveAttention,
    layers: Sequence[int] | None = None,
) -> Iterator[None]:
    """Show attention weights of some rows around anything that runs the model on their batch.

    In `generate` those of the prompt are shown; later steps, which have other rows, are not. The
    weights are those that the model goes on with: under a knockout, those that are left.

    Args:
        backbone: The model.
        rows: Whose weights.
        observe: Gets the number of the layer, from 0, and its weights in float32 or float64,
            (batch, heads, chosen, keys), where the layer computes. They sum to 1 over the keys.
        layers: Numbers of the layers that are looked at; None for all.

    Raises:
        ConfigError: At once: see `check_attention_weights`. In the model's forward: a layer has
            weights of another kind, or runs on other positions than the batch's.
    """
    check_attention_weights(backbone, layers)
    every = decoder_layers(backbone)
    numbers = [*range(len(every))] if layers is None else [*layers]
    attentions = {_find_attention(backbone, number): number for number in numbers}
    seen: set[int] = set()
    shown: set[int] = set()

    def show(number: int, call: AttentionCall | EagerAttention) -> None:
        seen.add(number)
        queries, _ = call.counts
        if queries < rows.length and number in shown:  # a later step of generation
            return
        if queries != rows.length:
            raise ConfigError(
                f"Layer {number} runs on {queries} positions, but attention weights are asked for "
                f"rows of {rows.length}. Look at them without skipping or dropping tokens, and on "
                "the batch that the model gets."
            )
        if call.unknown:
            raise _refuse_layer(backbone, number, f"also uses {call.unknown[0]!r}")
        shown.add(number)
        weights = call.weights(rows.index.to(call.device))[..., : rows.length]  # of a static cache
        valid = rows.valid.to(call.device)[:, None, :, None]
        with torch.autocast(call.device.type, enabled=False):  # sums of weights stay what they are
            observe(number, weights.masked_fill(~valid, 0.0))

    def check_seen(number: int, _: Tensor) -> None:
        if number not in seen:
            raise _refuse_layer(backbone, number, "is not looked up as that of other models")
        seen.discard(number)

    layers_of = {number: every[number] for number in numbers}
    with (
        hook_attention_calls(attentions, attention_of_layers(backbone), show),
        hook_outputs(layers_of, check_seen),
    ):
        yield


def _find_attention(backbone: Backbone, number: int) -> nn.Module:
    layer = decoder_layers(backbone)[number]
    for name in _NAMES:
        if (found := getattr(layer, name, None)) is not None:
            attention: nn.Module = found
            return attention
    raise _refuse_layer(backbone, number, f"has none of the names {', '.join(_NAMES)}")


def _refuse_layer(backbone: Backbone, number: int, reason: str) -> ConfigError:
    return refusal(
        backbone,
        "Looking at attention weights",
        f"the attention of its layer {number} {reason}",
        "Use a model of another family.",
    )
