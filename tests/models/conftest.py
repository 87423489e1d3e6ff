"""Batches of real digits for any tiny checkpoint."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Digits
from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.images.portable import portable_processor
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.export import export
from lightning_mllm.models.freeze import FreezePolicy
from lightning_mllm.models.source import Source
from tests.support.loaded import load_copy


def digits(checkpoint: str) -> Digits:
    data = Digits(checkpoint=checkpoint, batch_size=8, eval_batch_size=8)
    data.setup("fit")
    return data


_read_digits = cache(digits)  # for who does not train on them


def batch_of(checkpoint: str, size: int = 4) -> MultimodalBatch:
    """The first training samples of Digits, answers included."""
    data = _read_digits(checkpoint)
    return data.collator([(0, sample) for sample in data.samples["train"][:size]])


def logits(backbone: Backbone, batch: MultimodalBatch) -> torch.Tensor:
    """(batch, sequence, vocabulary), by the Hugging Face model's own forward."""
    with torch.no_grad():
        output: torch.Tensor = backbone.model(**batch.model_inputs()).logits
    return output


def export_from(
    checkpoint: str,
    backbone: Backbone,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    geometry: GeometryName | None = None,
) -> list[Path]:
    """Export a model that was trained from a checkpoint, with the checkpoint's processor."""
    processor = portable_processor(checkpoint, geometry=geometry)
    return export(backbone, output, source=Source(checkpoint), processor=processor, dtype=dtype)


def trained(checkpoint: str, policy: FreezePolicy) -> Backbone:
    """A model whose trainable weights have moved."""
    return move(load_copy(checkpoint), policy)


@torch.no_grad()
def move(backbone: Backbone, policy: FreezePolicy) -> Backbone:
    """Apply a policy, and move what it trains."""
    policy.apply(backbone)
    generator = torch.Generator().manual_seed(0)
    for _, parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return backbone
