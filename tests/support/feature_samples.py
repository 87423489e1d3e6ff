"""Samples, batches and points that the tests of extraction share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import ClassificationPrompt, Collator
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.probing.features.feature_set import FeatureSet
from lightning_mllm.probing.features.points import Point
from lightning_mllm.types import Sample
from tests.support.loaded import read_processor

NAMES = ("dog", "cat", "a small red fox")
# of LLaVA-NeXT, other numbers of views and tokens
SIZES = [(30, 30), (28, 84), (60, 20), (30, 41), (17, 30)]
VISION = [
    Point("pre"),
    Point("pre", pooling="max"),
    Point("pre", pooling="cls"),
    Point("pre", pooling="grid"),
]
EVERYWHERE = [*VISION, Point("post"), Point("image", 1), Point("last", 0), Point("last", 2)]
FAMILIES = pytest.mark.parametrize("family", ["llava", "llava_next"])


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    noise = torch.randint(
        256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(number)
    )
    return Image.fromarray(noise.to(torch.uint8).numpy())


def samples(count: int, images: int = 1) -> list[Sample]:
    return [
        Sample(
            id=f"s{k}",
            images=[picture(10 * k + i, SIZES[(k + i) % len(SIZES)]) for i in range(images)],
            label=NAMES[k % len(NAMES)],
        )
        for k in range(count)
    ]


def collator(checkpoint: str, side: PaddingSide = "right") -> Collator:
    return Collator(read_processor(checkpoint), ClassificationPrompt(), NAMES, padding_side=side)


def batches(
    checkpoint: str, chosen: Sequence[Sample], size: int = 2, side: PaddingSide = "right"
) -> list[MultimodalBatch]:
    collate = collator(checkpoint, side)
    return [
        collate([(0, each) for each in chosen[k : k + size]]) for k in range(0, len(chosen), size)
    ]


def equal(one: dict[str, FeatureSet], two: dict[str, FeatureSet]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[name].features, two[name].features)
        and one[name].sample_ids == two[name].sample_ids
        for name in one
    )


def count_calls(module: torch.nn.Module) -> Callable[[], int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return lambda: len(calls)


def count_tower_runs(backbone: Backbone) -> Callable[[], int]:
    """Count how often the tower computes; to replay it, its embeddings and its norm run too."""
    attention = backbone.vision_path.tower_layers[0].get_submodule("self_attn")
    return count_calls(attention)
