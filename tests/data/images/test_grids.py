"""What visual tokens show, and how many there are, by each family's own processor and model."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Geometry, apply_geometry
from lightning_mllm.data.images.regions import Regions
from lightning_mllm.data.images.views import count_class_tokens, count_views, find_views
from lightning_mllm.errors import DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Box, Segment
from tests.conftest import FamilyBuilder
from tests.data.conftest import collate
from tests.support.boxes import boxes_in, of_image, sample_of
from tests.support.grids import (
    ANYRES,
    FIXED,
    MERGED,
    ROWS,
    SPLITS,
    SQUARE,
    TILES,
    WITH_FRAME,
    WITH_GRID,
)

# sizes that a family's processor leaves as they are, or resizes to a whole fraction
WHOLE = {
    **dict.fromkeys((*FIXED, *SQUARE), ((28, 28), (56, 56))),
    **dict.fromkeys(ANYRES, ((56, 28), (28, 84), (56, 56))),
    **dict.fromkeys(MERGED, ((56, 42), (84, 28))),
    **dict.fromkeys(ROWS, ((84, 42), (56, 70))),
    **dict.fromkeys(TILES, ((56, 28), (28, 84), (56, 56))),
    **dict.fromkeys(SPLITS, ((56, 28), (28, 56), (56, 56))),
}
ATTENTION = ("out_proj", "o_proj", "proj", "projection_layer", "dense")
UNEVEN = ((41, 30), (30, 41), (100, 37), (50, 43))


def geometries(processor: CheckpointProcessor) -> Iterator[Geometry]:
    for geometry in Geometry:
        if geometry is not Geometry.NATIVE or processor.family.native:
            yield geometry


def sizes(count: int) -> Iterator[tuple[int, int]]:
    draw = random.Random(0)
    for _ in range(count):
        yield draw.randint(8, 150), draw.randint(8, 150)
    for _ in range(3):
        yield draw.randint(150, 400), draw.randint(8, 12)


@pytest.mark.parametrize("name", [*WITH_GRID, "gemma4"])
def test_tokens_are_as_many_as_the_processor_writes(tiny_family: FamilyBuilder, name: str) -> None:
    processor = load_processor(tiny_family(name))
    for geometry in geometries(processor):
        collator = Collator(processor, ConversationPrompt(), geometry=geometry)
        call: Any = processor.hf
        for size in sizes(15):
            picture = apply_geometry(Image.new("RGB", size), geometry, processor.image_processor)
            made = call(
                images=[picture],
                text=[processor.placeholder],
                add_special_tokens=False,
                return_text_replacement_offsets=True,
            )
            written = made["text_replacement_offsets"][0][0]["replacement"]
            ids = processor.tokenizer.encode(written, add_special_tokens=False)
            found = collator.find_image_text(size)

            assert len(found) == len(ids), (geometry, size)
            assert found.features == ids.count(processor.feature_token_id)
            views = find_views(size, geometry, processor)
            if views is not None:
                assert found.features == sum(map(len, views)) + count_class_tokens(processor)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TILES, *SPLITS, *ANYRES])
def test_views_are_as_many_as_the_processor_makes(tiny_family: FamilyBuilder, name: str) -> None:
    processor = load_processor(tiny_family(name))
    for size in sizes(10):
        (image,) = collate(Collator(processor, ConversationPrompt()), sample_of(size)).images

        assert count_views(size, processor) == image["pixel_values"].shape[:-3].numel()


def without_attention(path: str) -> Backbone:
    """A model whose tower tells no patch of another."""
    backbone = Backbone.from_pretrained(path, dtype=torch.float64)
    for name, module in backbone.vision_tower.named_modules():
        writes = name.rpartition(".")[2] in ATTENTION and "att" in name
        if writes and isinstance(module, torch.nn.Linear):
            module.weight.data.zero_()
            if module.bias is not None:
                module.bias.data.zero_()
    return backbone


def changed(backbone: Backbone, one: MultimodalBatch, other: MultimodalBatch) -> Tensor:
    """Which visual tokens of two pictures differ."""
    with torch.no_grad():
        (first,), (second,) = (backbone.encode_images(batch.images) for batch in (one, other))
    return (first.tokens - second.tokens).abs().amax(-1) > 1e-9


def drawn(size: tuple[int, int], box: Box) -> Image.Image:
    """A picture whose colour is none of the fill's, with the box in green."""
    image = Image.new("RGB", size, (90, 120, 60))
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    ImageDraw.Draw(image).rectangle(corners, fill=(255, 0, 200))
    return image


def grown(box: Box, by: int) -> Box:
    return Box(box.left - by, box.top - by, box.width + 2 * by, box.height + 2 * by)


@pytest.mark.parametrize("name", WITH_GRID)
def test_the_tokens_that_change_with_a_box_are_those_that_show_it(
    tiny_family: FamilyBuilder, name: str
) -> None:
    """No tower's attention writes anything, and pixels are averaged, or none is resampled."""
    processor, backbone = load_processor(tiny_family(name)), without_attention(tiny_family(name))
    processor.image_processor.resample = Image.Resampling.BOX
    collator = Collator(processor, ConversationPrompt())
    for size in WHOLE[name]:
        blank = replace(sample_of(size), images=[Image.new("RGB", size, (90, 120, 60))])
        for box in boxes_in(size, 4):
            boxed = replace(sample_of(size, box), images=[drawn(size, box)])
            batch = collate(collator, boxed)

            found = changed(backbone, batch, collate(collator, blank))
            assert torch.equal(of_image(batch, Segment.IMAGE_OBJECT), found), (size, box)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_GRID)
def test_with_the_resampling_of_the_family_only_borders_blur(
    tiny_family: FamilyBuilder, name: str
) -> None:
    """What shows the inside of a box changes with it, and what shows nothing near it does not."""
    processor, backbone = load_processor(tiny_family(name)), without_attention(tiny_family(name))
    for geometry in geometries(processor):
        collator = Collator(processor, ConversationPrompt(), geometry=geometry)
        for size in UNEVEN:
            blank = replace(sample_of(size), images=[Image.new("RGB", size, (90, 120, 60))])
            (box,) = boxes_in(size, 1, least=max(size) // 8)
            batch = collate(collator, replace(sample_of(size, box), images=[drawn(size, box)]))
            inside, around = (
                of_image(collate(collator, sample_of(size, grown(box, by))), Segment.IMAGE_OBJECT)
                for by in (-2, 16)
            )

            found = changed(backbone, batch, collate(collator, blank))
            assert not (inside & ~found).any(), (geometry, size)
            assert not (found & ~around).any(), (geometry, size)


@pytest.mark.parametrize(("name", "first"), [("llava_next", True), ("internvl", False)])
def test_the_whole_picture_is_the_base_wherever_it_stands(
    tiny_family: FamilyBuilder, name: str, first: bool
) -> None:
    batch = collate(
        Collator(load_processor(tiny_family(name)), ConversationPrompt()), sample_of((56, 28))
    )
    base, tiles = of_image(batch, Segment.IMAGE_BASE), of_image(batch, Segment.IMAGE_TILES)

    assert torch.equal(base, ~tiles) and base.any() and tiles.any()
    assert base[0] == first and base[-1] != first


@pytest.mark.parametrize("name", [*TILES, *SPLITS])
def test_a_picture_that_is_not_cut_is_all_base(tiny_family: FamilyBuilder, name: str) -> None:
    processor = load_processor(tiny_family(name))
    if name in SPLITS:
        processor.image_processor.do_image_splitting = False
    batch = collate(Collator(processor, ConversationPrompt()), sample_of((28, 28)))

    assert of_image(batch, Segment.IMAGE_BASE).all()


@pytest.mark.parametrize("name", WITH_FRAME)
def test_a_frame_is_none_of_the_image_and_both_are_all_that_stands_for_it(
    tiny_family: FamilyBuilder, name: str
) -> None:
    """`image->question` hides the features alone, and "image+image frame" the rest as well."""
    processor = load_processor(tiny_family(name))
    collator = Collator(processor, ConversationPrompt())
    for size in ((56, 28), (40, 60)):
        batch = collate(collator, sample_of(size, Box(2, 2, 5, 5)))
        image, frame = batch.spans[Segment.IMAGE][0], batch.spans[Segment.IMAGE_FRAME][0]

        assert torch.equal(image, batch.input_ids[0] == processor.feature_token_id)
        assert frame.any() and not (frame & image).any()
        assert not (frame & batch.spans[Segment.QUESTION][0]).any()
        (places,) = (frame | image).nonzero(as_tuple=True)
        assert len(places) == len(collator.find_image_text(size))
        assert (places.diff() == 1).all()
        for segment in (Segment.IMAGE_OBJECT, Segment.IMAGE_OTHER, Segment.IMAGE_TILES):
            assert not (batch.spans[segment][0] & frame).any()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_without_a_frame_there_is_none(tiny_family: FamilyBuilder, name: str) -> None:
    batch = collate(
        Collator(load_processor(tiny_family(name)), ConversationPrompt()), sample_of((56, 28))
    )

    assert not batch.spans[Segment.IMAGE_FRAME].any()


def test_a_map_that_onevision_shrinks_shows_both_patches_that_are_interpolated(
    tiny_family: FamilyBuilder,
) -> None:
    path = tiny_family("llava_onevision")
    processor, backbone = load_processor(path), without_attention(path)
    processor.image_processor.resample = Image.Resampling.BOX
    owners: tuple[Any, ...] = (processor.hf, processor.config, backbone.model.config)
    for owner in owners:
        owner.vision_aspect_ratio = "anyres_max_1"
    collator = Collator(processor, ConversationPrompt())
    size = (56, 56)
    views = find_views(size, Geometry.NATIVE, processor)
    assert views is not None and len(views[1].rows) == 4
    blank = replace(sample_of(size), images=[Image.new("RGB", size, (90, 120, 60))])
    for box in boxes_in(size, 6):
        batch = collate(collator, replace(sample_of(size, box), images=[drawn(size, box)]))
        shown = of_image(batch, Segment.IMAGE_OBJECT)

        found = changed(backbone, batch, collate(collator, blank))
        assert not (found & ~shown).any(), box


@pytest.mark.parametrize(("name", "size"), [("qwen2_vl", (402, 2)), ("mistral3", (400, 2))])
def test_a_picture_too_narrow_for_its_processor_is_named(
    tiny_family: FamilyBuilder, name: str, size: tuple[int, int]
) -> None:
    collator = Collator(load_processor(tiny_family(name)), ConversationPrompt())

    with pytest.raises(DataError, match=rf"A picture of {size[0]} x 2 pixels is too long and"):
        collator.find_image_text(size)


def test_boxes_are_refused_by_the_names_of_the_families_that_take_them(
    tiny_family: FamilyBuilder,
) -> None:
    processor = load_processor(tiny_family("gemma4"))
    regions = Regions(processor, Geometry.NATIVE)

    with pytest.raises(DataError, match=r"only known for aya_vision, gemma3, .*, not for this Gem"):
        regions.find_masks(sample_of((28, 28), Box(0, 0, 1, 1)), [(28, 28)], [4])
