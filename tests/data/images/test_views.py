"""The closed form against boxes that are drawn and go through the same pixels."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
)

from lightning_mllm.batches import MultimodalBatch, join_images
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Geometry, GeometryName
from lightning_mllm.types import Segment
from tests.data.conftest import collate
from tests.support.boxes import boxes_in, of_image, sample_of

SIDE, PATCH = 28, 7  # of the tiny checkpoints
OPTIONS: dict[str, Any] = {
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(**OPTIONS),
    "siglip": CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False),
    "llava": LlavaImageProcessorPil(**OPTIONS, do_pad=True),
}
SQUARE: tuple[GeometryName, ...] = ("pad", "crop", "squash")
WHOLE = (
    (56, 28),
    (28, 84),
    (112, 56),
    (56, 112),
    (56, 56),
)  # resized to a whole fraction, whatever the geometry
WHOLE_TILES = ((56, 28), (112, 56), (56, 112), (56, 56), (112, 84))
UNEVEN = ((41, 30), (30, 41), (100, 37), (333, 500), (20, 13))
GREEN = (
    0.01  # of a patch that shows anything of a box: single pixels are averaged with up to 15 others
)

every_processor = pytest.mark.parametrize("name", PROCESSORS)


def raw(processor: CheckpointProcessor, resample: Image.Resampling) -> CheckpointProcessor:
    """Let pixels keep their values from 0 to 255."""
    image_processor = processor.image_processor
    image_processor.resample, image_processor.do_rescale, image_processor.do_normalize = (
        resample,
        False,
        False,
    )
    return processor


def greenness(batch: MultimodalBatch) -> Tensor:
    """How green the greenest pixel of each patch is, from 0 to 1: (views, rows, columns)."""
    views = join_images(batch.images)["pixel_values"].reshape(-1, 3, SIDE, SIDE).float()
    return max_pool2d((views[:, 1] - views[:, 0]) / 255, PATCH)


def packed(model: Any, batch: MultimodalBatch, values: Tensor) -> Tensor:
    """Put values of patches in LLaVA-NeXT's own order of features, with -1 at its separators."""
    features, separator = [values.flatten(1)[..., None]], torch.tensor([-1.0])
    (row,), _ = model.model.pack_image_features(
        features, join_images(batch.images)["image_sizes"], "default", separator
    )
    return torch.as_tensor(row[:, 0])


def grown(grid: Tensor) -> Tensor:
    """Add the neighbours of each patch: (views, rows, columns)."""
    return max_pool2d(grid.float(), 3, stride=1, padding=1)


@every_processor
@pytest.mark.parametrize("geometry", SQUARE)
def test_where_pixels_are_averaged_a_box_covers_the_patches_that_show_it(
    vicuna: CheckpointProcessor, name: str, geometry: GeometryName
) -> None:
    vicuna.hf.image_processor = PROCESSORS[name]
    collator = Collator(raw(vicuna, Image.Resampling.BOX), ConversationPrompt(), geometry=geometry)
    for size in WHOLE:
        for box in boxes_in(size, 6):
            batch = collate(collator, sample_of(size, box))
            assert torch.equal(
                of_image(batch, Segment.IMAGE_OBJECT), (greenness(batch) > GREEN).flatten()
            ), (size, box)


@pytest.mark.parametrize("geometry", Geometry)
def test_in_tiles_too(tiny_llava_next: str, geometry: GeometryName) -> None:
    processor, model = (
        load_processor(tiny_llava_next),
        AutoModelForImageTextToText.from_pretrained(tiny_llava_next),
    )
    collator = Collator(
        raw(processor, Image.Resampling.BOX), ConversationPrompt(), geometry=geometry
    )
    for size in WHOLE_TILES if geometry == "tiles" else WHOLE:
        for box in boxes_in(size, 4):
            batch = collate(collator, sample_of(size, box))
            green = packed(model, batch, greenness(batch))
            assert torch.equal(of_image(batch, Segment.IMAGE_OBJECT), green > GREEN), (size, box)
            assert torch.equal(of_image(batch, Segment.IMAGE_NEWLINE), green == -1)


@every_processor
@pytest.mark.parametrize("geometry", SQUARE)
def test_with_the_resampling_of_the_family_only_borders_blur(
    vicuna: CheckpointProcessor, name: str, geometry: GeometryName
) -> None:
    """A pixel of mostly a box's colour is in it; a patch of the box is next to such a pixel."""
    vicuna.hf.image_processor = PROCESSORS[name]
    collator = Collator(
        raw(vicuna, Image.Resampling.BICUBIC), ConversationPrompt(), geometry=geometry
    )
    for size in UNEVEN:
        for box in boxes_in(size, 4, least=max(size) // 8):
            batch = collate(collator, sample_of(size, box))
            clearly = greenness(batch) > 0.55
            shown = of_image(batch, Segment.IMAGE_OBJECT)
            assert not (clearly.flatten() & ~shown).any(), (size, box)
            assert not (shown & (grown(clearly).flatten() == 0)).any() or not clearly.any(), (
                size,
                box,
            )


def test_with_the_resampling_of_tiles_only_borders_blur(tiny_llava_next: str) -> None:
    processor, model = (
        load_processor(tiny_llava_next),
        AutoModelForImageTextToText.from_pretrained(tiny_llava_next),
    )
    collator = Collator(raw(processor, Image.Resampling.BICUBIC), ConversationPrompt())
    for size in UNEVEN:
        for box in boxes_in(size, 4, least=max(size) // 8):
            batch = collate(collator, sample_of(size, box))
            shown = of_image(batch, Segment.IMAGE_OBJECT)
            assert not ((packed(model, batch, greenness(batch)) > 0.55) & ~shown).any(), (size, box)
