"""Pairs of prompts for the laws of patching: another picture, or another word."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_mllm.analysis import Window
from lightning_mllm.analysis.patching.edits import PatchCase, find_patch_window
from lightning_mllm.analysis.patching.patch import Patch
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.types import Segment
from tests.support.decoders import LAYERS, make_batch

RESIDUAL = ("image object", "image other", "image", "question", "suffix", "last", "text+image")
OUTPUTS = ("image object @ attention", "question @ ffn", "last @ attention", "last @ head[1.0,2.3]")


def picture_pair(checkpoint: str) -> tuple[MultimodalBatch, MultimodalBatch]:
    """The same questions about two pictures each."""
    clean = make_batch(checkpoint)
    return clean, _rename(replace(clean, images=_others(clean)))


def word_pair(checkpoint: str) -> tuple[MultimodalBatch, MultimodalBatch]:
    """Two questions about each picture, of which one word differs."""
    clean = make_batch(checkpoint)
    ids = clean.input_ids.clone()
    for row, asked in enumerate(clean.spans[Segment.QUESTION]):
        place = int(asked.nonzero()[-2])
        ids[row, place] = (ids[row, place] + 7) % 90 + 5
    return clean, _rename(replace(clean, input_ids=ids))


def cases(*texts: str, start: int = 0, width: int = 1) -> list[PatchCase]:
    """Each patch in each window of a width, from a layer on; heads in their own layers."""
    found = []
    for text in texts:
        patch = Patch.parse(text)
        if patch.heads:
            found.append(PatchCase(patch, find_patch_window(patch, None)))
            continue
        for layer in range(start, LAYERS - width + 1):
            found.append(PatchCase(patch, Window(layer, layer, layer + width)))
    return found


def ids_of(batch: MultimodalBatch) -> torch.Tensor:
    return torch.arange(5, 9).expand(len(batch), -1)


def _others(batch: MultimodalBatch) -> tuple[dict[str, torch.Tensor], ...]:
    return tuple({**image, "pixel_values": -image["pixel_values"]} for image in batch.images)


def _rename(batch: MultimodalBatch) -> MultimodalBatch:
    return replace(batch, sample_ids=tuple(f"{name}'" for name in batch.sample_ids))
