"""What the tests of skipping share: cases of each computation, and looks into the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers
from tests.support import decoders as knocking

BLOCKS = Skip(computation="parallel_blocks", share=1.0, tokens="all", phase="both", interval=2)
ONE_LAYER: dict[str, Any] = {"start": 2, "stop": 3}
CASES = {
    "ffn": Skip(share=0.5),
    "ffn of all": Skip(share=1.0, tokens="all", phase="both"),
    "ffn, strided": Skip(share=0.4, choice="strided", tokens="all", phase="both", start=1),
    "ffn, anew in each layer": Skip(share=0.5, per_layer=True, phase="both", tokens="textual"),
    "attention": Skip(computation="attention", share=0.5),
    "attention, seen": Skip(
        computation="attention", share=0.5, visible=True, tokens="all", phase="both"
    ),
    "attention of all": Skip(
        computation="attention", share=1.0, tokens="all", phase="both", interval=2
    ),
    "attention, behind": Skip(computation="attention", share=0.5, tokens="textual", phase="decode"),
    "block": Skip(computation="block", share=0.5, start=1),
    "block, seen": Skip(
        computation="block", share=0.7, visible=True, phase="both", tokens="all", choice="strided"
    ),
    "block of all": Skip(
        computation="block", share=1.0, tokens="all", phase="both", start=0, stop=1
    ),
    "block of the prompt": Skip(computation="block", share=1.0, tokens="all", start=1, stop=3),
    "block of all, seen": Skip(computation="block", share=1.0, tokens="all", visible=True, stop=2),
    "block, anew in each layer": Skip(
        computation="block", share=0.5, per_layer=True, tokens="all", phase="both"
    ),
    "parallel": Skip(computation="parallel", share=1.0, tokens="all", phase="both"),
    "parallel, some": Skip(computation="parallel", share=0.5),
    "parallel blocks": BLOCKS,
    "parallel blocks, from 1": replace(BLOCKS, start=1, interval=3),
}
EACH = pytest.mark.parametrize("name", CASES)
SIDES = pytest.mark.parametrize("side", ["left", "right"])


@torch.no_grad()
def make_backbone(checkpoint: str, *options: Any, **more: Any) -> Backbone:
    """Return a model such as the tests of knockouts have, but with norms that differ."""
    backbone = knocking.make_backbone(checkpoint, *options, **more)
    generator = torch.Generator().manual_seed(0)
    for name, weight in backbone.decoder.named_parameters():
        if weight.ndim == 1 and "norm" in name:
            weight.mul_(0.5 + torch.rand(weight.shape, generator=generator).to(weight.dtype))
    return backbone


@torch.no_grad()
def states(backbone: Backbone, batch: MultimodalBatch) -> list[Tensor]:
    """What leaves each layer, un-normed."""
    found: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, out: found.append(out))
        for layer in decoder_layers(backbone)
    ]
    try:
        backbone.model(**batch.model_inputs(), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def logits(backbone: Backbone, batch: MultimodalBatch) -> Tensor:
    found: Tensor = backbone.model(**batch.model_inputs(), use_cache=False).logits
    return found


@contextmanager
def rows_into(module: nn.Module) -> Iterator[list[int]]:
    """Count the rows that enter a module."""
    rows: list[int] = []

    def count(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        entering = positional[0] if positional else named["hidden_states"]
        rows.append(entering.flatten(0, -2).shape[0])

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def layer_inside(backbone: Backbone, batch: MultimodalBatch, layer: int) -> tuple[Tensor, Tensor]:
    """The model's own X and X' of a layer."""
    seen: dict[str, Tensor] = {}
    module: Any = decoder_layers(backbone)[layer]
    handles = [
        getattr(module, part).register_forward_pre_hook(
            lambda _, given, key=part: seen.update({key: given[0]})
        )
        for part in ("input_layernorm", "post_attention_layernorm")
    ]
    logits(backbone, batch)
    for handle in handles:
        handle.remove()
    return seen["input_layernorm"], seen["post_attention_layernorm"]
