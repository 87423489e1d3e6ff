"""Wanda by hand, and batches with more padding: what the tests of sub-networks share."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.subnetwork.activated_weights import ActivatedWeights
from lightning_mllm.analysis.subnetwork.calibration_options import CalibrationOptions
from lightning_mllm.analysis.subnetwork.matrices import Matrix
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import IGNORE_INDEX, Segment
from tests.support.questions import batches, tokenizer

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
CHOOSE, LOGICAL = "choose/attr", "logical/obj"  # tasks of four and of two samples
SEVEN = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@torch.no_grad()
def by_hand(
    backbone: Backbone, batch: MultimodalBatch, options: CalibrationOptions, sparsity: float
) -> tuple[dict[Matrix, Tensor], dict[Matrix, Tensor]]:
    """Return sums of squares and kept weights: each sample alone, unpadded, anew per matrix."""
    model = Backbone(copy.deepcopy(backbone.model))
    decoder: Any = model.decoder
    sequences = [_sequence(model, batch, row, options) for row in range(len(batch))]
    squares: dict[Matrix, Tensor] = {}
    kept: dict[Matrix, Tensor] = {}
    for index, layer in enumerate(decoder.layers):
        for name in SEVEN:
            squares[Matrix(index, name)] = sum(
                (_squares(decoder, layer.get_submodule(name), *each) for each in sequences),
                start=torch.tensor(0.0),
            )
        for name in SEVEN:
            matrix, module = Matrix(index, name), layer.get_submodule(name)
            kept[matrix] = prune_by_hand(module.weight, squares[matrix], sparsity)
            if options.sequential:
                module.weight *= kept[matrix]
    return squares, kept


def prune_by_hand(weight: Tensor, squares: Tensor, sparsity: float) -> Tensor:
    """Return which weights of each row are kept, by sorting lists."""
    kept = torch.ones_like(weight, dtype=torch.bool)
    for row, cells in enumerate(weight.tolist()):
        scores = [
            abs(cell) * norm for cell, norm in zip(cells, squares.sqrt().tolist(), strict=True)
        ]
        order = sorted(range(len(scores)), key=lambda column: scores[column])
        kept[row, order[: floor(sparsity * len(scores))]] = False
    return kept


def run(
    backbone: Backbone, checkpoint: str, folder: Path | None = None, size: int = 4, **options: Any
) -> ActivatedWeights:
    """Calibrate on the questions of the tests."""
    analysis = ActivatedWeights(**{"samples": 2, **options})
    analysis.prepare(tokenizer(checkpoint), folder)
    for batch in batches(checkpoint, size):
        analysis.update(backbone, batch)
    return analysis


def widen(batch: MultimodalBatch, left: int, right: int) -> MultimodalBatch:
    """Return a batch with more padding."""

    def fill(values: Tensor, value: int | bool) -> Tensor:
        return nn.functional.pad(values, (left, right), value=value)

    return replace(
        batch,
        input_ids=fill(batch.input_ids, batch.pad_id),
        attention_mask=fill(batch.attention_mask, 0),
        labels=fill(batch.labels, IGNORE_INDEX),
        spans=batch.spans.map(lambda mask: fill(mask, False)),
        steps=fill(batch.steps, 0),
    )


def _sequence(
    backbone: Backbone, batch: MultimodalBatch, row: int, options: CalibrationOptions
) -> tuple[Tensor, Tensor]:
    """Return the decoder's input, (1, length, width), of a sample, and what counts, (length,)."""
    alone = batch.take([row])
    real, image = alone.attention_mask[0].bool(), alone.spans[Segment.IMAGE][0]
    decoder: Any = backbone.decoder
    embedded = decoder.embed_tokens(alone.input_ids)[0]
    if alone.images:
        encoded = backbone.encode_images(alone.images)
        embedded[image] = torch.cat([each.tokens for each in encoded]).to(embedded.dtype)
    text = [not image[place] for place in range(len(image))]
    if not options.before_image:
        text = [own and bool(image[:place].any()) for place, own in enumerate(text)]
    if not options.answers:
        text = [own and not alone.spans[Segment.ANSWER][0, place] for place, own in enumerate(text)]
    textual = real & torch.tensor(text)
    counted = {"perceptual": image, "textual": textual, "both": image | textual}[options.tokens]
    fed = real.clone()
    if options.context == "own":
        fed = counted.clone()
        fed[int(real.nonzero()[0])] = True
    return embedded[fed][None], counted[fed]


def _squares(decoder: nn.Module, module: nn.Module, embedded: Tensor, counted: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(inputs_embeds=embedded, use_cache=False)
    handle.remove()
    return (seen[0][0, counted] ** 2).sum(0)
