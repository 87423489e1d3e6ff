"""Dropping visual tokens: while the `with` block lasts, some are gone from a layer on.

The work of dropped tokens is not done, and their keys and values are not kept, so that time,
operations and memory are really saved, in evaluation and in training. Tokens are ranked once, when
the prompts run. Generating token by token is the same as running the whole sequence: positions
count the full length, and the caches of the layers behind the drop are shorter than those before.
See `Drop` for what can be dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import DynamicCache

from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.analysis.dropping.drop import Drop
from lightning_mllm.analysis.dropping.drop_run import DropRun
from lightning_mllm.analysis.dropping.ranking import drops_nothing
from lightning_mllm.analysis.forward.attention import check_attention_weights
from lightning_mllm.analysis.forward.sample_tokens import SampleTokens
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import InsteadForward, hook_before_call, hook_in_layers
from lightning_mllm.models.layers import (
    attention_of_layers,
    decoder_layers,
    layers_without_keys,
)

logger = logging.getLogger(__name__)

_WAY_OUT = "Use a model whose layers all attend to all keys, such as qwen2_5_vl."


@contextmanager
def dropping(
    backbone: Backbone, batch: MultimodalBatch | SampleTokens, drop: Drop
) -> Iterator[None]:
    """Drop visual tokens in whatever runs the model on this batch: forward, backward, `generate`.

    The batch may be run whole or as its `prompts()`, each sequence once or repeated (beams), with
    a cache or without. Logits and states have all positions; those of dropped tokens stay as they
    were in front of the layer, and mean nothing behind it. Knockouts may be around it or in it; a
    skip may be, in layers that are not touched here. If no token of the batch will be dropped, a
    warning says so.

    Args:
        backbone: The model.
        batch: The samples that the model will be run on, all of them and in this order.
        drop: Which tokens are dropped.

    Raises:
        ConfigError: At once: see `check_dropping`, or another edit computes one of the layers. In
            the model's forward: it is run on other samples, goes on from a cache of before, or its
            layers get something for each row that can't be cut.
    """
    tokens = batch if isinstance(batch, SampleTokens) else SampleTokens.of(batch)
    if drops_nothing(tokens, drop):
        logger.warning(
            "Nothing is dropped in any of the %d samples: a share of %s of their visual tokens is "
            "less than half a token.",
            *(len(tokens), drop.share),
        )
    with dropped(backbone, tokens, drop):
        yield


@contextmanager
def dropped(backbone: Backbone, tokens: SampleTokens, drop: Drop) -> Iterator[None]:
    """Drop visual tokens as `dropping` does, but without its warning.

    A batch of which no token is dropped, such as one without images, may be meant.
    """
    check_dropping(backbone, drop)
    layers = decoder_layers(backbone)
    first = drop.first_layer(len(layers))
    looked_at = [first - 1] if drop.choice == "attention" else []
    touched = {index: layers[index] for index in (*looked_at, *range(first, len(layers)))}
    _check_edits(touched)
    forwards = {index: layer.forward for index, layer in touched.items()}
    run = DropRun(backbone, drop, forwards, first, tokens.to(backbone.model.device))
    with hook_before_call(backbone.decoder, run.begin), hook_in_layers(touched, run.work):
        yield


def check_dropping(backbone: Backbone, drop: Drop) -> None:
    """Refuse a model of which tokens can't be dropped, before there are samples.

    Raises:
        ConfigError: The model is compiled; its attention takes no dense mask; it mixes tokens
            without keys, or keeps those of a window only; its tokens see later ones; it has no such
            layer; its attention weights are not known, where they choose.
    """
    first = drop.first_layer(len(decoder_layers(backbone)))
    if any(module._compiled_call_impl is not None for module in backbone.model.modules()):
        raise ConfigError(
            "The model is compiled, and the compiled code would run without dropping anything. Use "
            "a model that is not compiled."
        )
    if lacking := layers_without_keys(backbone):
        raise refusal(
            backbone,
            "Dropping tokens",
            f"its LLM mixes tokens without keys in layers {', '.join(map(str, lacking))}, in whose "
            "state they stay",
            _WAY_OUT,
        )
    if any(DynamicCache(config=backbone.model.config).is_sliding):
        raise refusal(
            backbone,
            "Dropping tokens",
            "some of its layers keep the keys of a window only, which are counted from its end",
            _WAY_OUT,
        )
    if backbone.family.sees != "causal":
        raise refusal(
            backbone,
            "Dropping tokens",
            "its tokens also see later ones, by masks in which they can't be numbered",
            _WAY_OUT,
        )
    if (attention := attention_of_layers(backbone)) not in ("sdpa", "eager"):
        raise ConfigError(
            f"Tokens are dropped with a dense mask, which {attention!r} may ignore or reject. Load "
            "the model with attention=sdpa or attention=eager."
        )
    if drop.choice == "attention":
        check_attention_weights(backbone, [first - 1])


def _check_edits(layers: dict[int, nn.Module]) -> None:
    """Refuse layers that another edit computes: it would get rows that it does not know."""
    for index, layer in layers.items():
        if isinstance(layer.__dict__.get("forward"), InsteadForward):
            raise ConfigError(
                f"Layer {index} is computed by another edit already, `skipping` or `dropping`, and "
                "the effect of two on one layer is not defined. Give them different layers."
            )
