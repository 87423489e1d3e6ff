"""Regions of pictures: how they part the image, and where boxes lie."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil

from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Geometry, GeometryName
from lightning_mllm.data.images.regions import Regions, check_region_boxes, region_leaves_picture
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.errors import DataError
from lightning_mllm.types import Box, Sample, Segment
from tests.conftest import TinyBuilder
from tests.data.conftest import TEXT_ONLY, chat_sample, collate
from tests.support.boxes import boxes_in, of_image, sample_of
from tests.support.feature_samples import picture


def test_two_boxes_are_one_object(processor: CheckpointProcessor) -> None:
    first, second = Box(0, 0, 9, 9), Box(40, 20, 9, 9)
    both, one, other = (
        of_image(
            collate(Collator(processor, ConversationPrompt()), sample_of((56, 40), *boxes)),
            Segment.IMAGE_OBJECT,
        )
        for boxes in ((first, second), (first,), (second,))
    )

    assert torch.equal(both, one | other)
    assert one.any() and other.any() and not (one & other).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_regions_part_the_image(processor: CheckpointProcessor, side: PaddingSide) -> None:
    collator = Collator(processor, ConversationPrompt(), padding_side=side)
    sample = sample_of((90, 41), Box(10, 5, 30, 20))

    batch = collate(collator, chat_sample(images=3), sample, TEXT_ONLY)

    image, thing, other, newline = (
        batch.spans[Segment(name)]
        for name in ("image", "image object", "image other", "image newline")
    )
    base, tiles, padding, drawn = (
        batch.spans[Segment(name)]
        for name in ("image base", "image tiles", "image padding", "image random")
    )
    assert torch.equal((thing.int() + other.int() + newline.int())[1], image[1].int())
    assert torch.equal(base ^ tiles, image)
    assert not (newline & ~tiles).any()
    assert not (padding & (newline | thing | ~image)).any()
    assert drawn[1].sum() == thing[1].sum() > 0
    assert not (drawn & (newline | ~image)).any()
    assert not (thing | other | drawn)[[0, 2]].any()  # without boxes
    alone = collate(collator, sample)
    for segment in Segment:
        assert torch.equal(
            batch.spans[segment][1][batch.attention_mask[1].bool()], alone.spans[segment][0]
        )


def test_a_separator_stands_behind_each_row_of_the_tiles(tiny_llava_next: str) -> None:
    collator = Collator(load_processor(tiny_llava_next), ConversationPrompt())
    for size in ((56, 42), (42, 56), (64, 64), (90, 30)):
        batch = collate(collator, sample_of(size))
        newline, tiles = (
            of_image(batch, Segment.IMAGE_NEWLINE),
            of_image(batch, Segment.IMAGE_TILES),
        )
        (places,) = newline.nonzero(as_tuple=True)
        (width,) = places.diff().unique().tolist()

        assert of_image(batch, Segment.IMAGE_BASE).sum() == 16
        assert len(places) * width == tiles.sum()
        assert places[-1] == len(newline) - 1


def test_bars_beside_a_picture_are_padding(vicuna: CheckpointProcessor) -> None:
    def padding(size: tuple[int, int], geometry: GeometryName) -> list[list[int]]:
        batch = collate(Collator(vicuna, ConversationPrompt(), geometry=geometry), sample_of(size))
        return of_image(batch, Segment.IMAGE_PADDING).reshape(4, 4).int().tolist()

    bar, picture_, none = [1] * 4, [0] * 4, [[0] * 4] * 4
    assert padding((56, 28), "pad") == [bar, picture_, picture_, bar]
    assert padding((28, 56), "pad") == [[1, 0, 0, 1]] * 4
    assert padding((56, 30), "pad") == none  # one pixel of it is in the outer rows
    assert (
        padding((56, 28), "crop") == padding((56, 28), "squash") == padding((28, 28), "pad") == none
    )


def test_random_patches_depend_on_the_samples_id_alone(vicuna: CheckpointProcessor) -> None:
    collator = Collator(vicuna, ConversationPrompt())

    def drawn(name: str) -> list[int]:
        batch = collate(collator, sample_of((28, 28), Box(0, 0, 13, 13), name=name))
        return of_image(batch, Segment.IMAGE_RANDOM).nonzero().flatten().tolist()

    assert drawn("a") == drawn("a") == [3, 6, 11, 14]  # in every process
    assert {len(drawn(str(number))) for number in range(20)} == {4}
    assert len({tuple(drawn(str(number))) for number in range(20)}) > 10


def test_in_each_view_as_many_others_are_drawn_as_the_object_has(
    processor: CheckpointProcessor,
) -> None:
    collator = Collator(processor, ConversationPrompt())
    for size in ((90, 41), (28, 28), (30, 60)):
        for number, box in enumerate(boxes_in(size, 12)):
            batch = collate(collator, sample_of(size, box, name=str(number)))
            for view in (Segment.IMAGE_BASE, Segment.IMAGE_TILES):
                thing, other, drawn, padding, newline = (
                    of_image(batch, Segment(f"image {name}")) & of_image(batch, view)
                    for name in ("object", "other", "random", "padding", "newline")
                )
                count, free = thing.sum(), (other & ~padding).sum()
                assert drawn.sum() == count
                assert (drawn & other & ~padding).sum() == min(count, free)
                assert (drawn & padding).sum() == min(count - min(count, free), padding.sum())
                assert not (drawn & newline).any()


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((28, 28), Box(0, 0, 13, 13), (4, 0, 0)),
        (
            (56, 28),
            Box(0, 0, 41, 27),
            (2, 4, 0),
        ),  # eight patches, six of them the object's, and two bars of four
        ((56, 28), Box(0, 0, 55, 27), (0, 8, 0)),
        ((56, 29), Box(0, 0, 55, 28), (0, 4, 8)),  # one bar
        ((28, 28), Box(0, 0, 20, 27), (4, 0, 8)),
        ((28, 28), Box(0, 0, 27, 27), (0, 0, 16)),
    ],
)
def test_where_others_are_too_few_padding_and_then_the_object_fill_up(
    vicuna: CheckpointProcessor, size: tuple[int, int], box: Box, expected: tuple[int, int, int]
) -> None:
    masks = Regions(vicuna, Geometry.PAD).find_masks(sample_of((2, 2), box), [size], [16])
    thing, drawn, padding = (
        masks[Segment(f"image {name}")] for name in ("object", "random", "padding")
    )

    assert (
        tuple(int((drawn & part).sum()) for part in (~(thing | padding), padding, thing))
        == expected
    )


def real(tiles: bool, tiny_checkpoint: TinyBuilder) -> CheckpointProcessor:
    """A processor with pictures and patches as large as those of the published checkpoints."""
    processor = load_processor(tiny_checkpoint("llava_next" if tiles else "llava", "vicuna"))
    options: dict[str, Any] = {
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
    }
    processor.hf.image_processor = (
        LlavaNextImageProcessorPil(**options) if tiles else CLIPImageProcessorPil(**options)
    )
    processor.hf.patch_size = 14  # type: ignore[attr-defined]  # of each family's own class
    return processor


@pytest.mark.parametrize(
    ("size", "count", "rows"),
    [((375, 500), 2352, 48), ((500, 375), 2340, 36), ((500, 333), 1464, 24)],
)
def test_tiles_are_counted_as_in_the_study(
    tiny_checkpoint: TinyBuilder, size: tuple[int, int], count: int, rows: int
) -> None:
    processor = real(True, tiny_checkpoint)
    masks = Regions(processor, Geometry.NATIVE).find_masks(
        sample_of(size, Box(0, 0, 9, 9)), [size], [count]
    )

    assert masks[Segment.IMAGE_BASE].sum() == 576
    assert masks[Segment.IMAGE_NEWLINE].sum() == rows
    assert len(Collator(processor, ConversationPrompt()).find_image_text(size)) == count


def test_padding_maps_boxes_by_the_formula_of_the_study(tiny_checkpoint: TinyBuilder) -> None:
    regions = Regions(real(False, tiny_checkpoint), Geometry.PAD)
    for width, height in ((500, 375), (375, 500), (640, 427), (333, 500)):
        side = max(width, height)
        scale = Fraction(24, side)
        for box in boxes_in((width, height), 20):
            expected = torch.zeros(24, 24, dtype=torch.bool)
            (left, right), (top, bottom) = (
                (floor((at + offset) * scale), ceil((at + length + 1 + offset) * scale))
                for at, length, offset in (
                    (int(box.left), int(box.width), (side - width) // 2),
                    (int(box.top), int(box.height), (side - height) // 2),
                )
            )
            expected[top:bottom, left:right] = True
            masks = regions.find_masks(sample_of((2, 2), box), [(width, height)], [576])
            assert torch.equal(masks[Segment.IMAGE_OBJECT], expected.flatten())


def test_a_box_is_cut_at_the_edge_of_the_picture(vicuna: CheckpointProcessor) -> None:
    regions = Regions(vicuna, Geometry.PAD)

    def shown(*boxes: Box) -> list[int]:
        masks = regions.find_masks(sample_of((2, 2), *boxes), [(56, 28)], [16])
        return masks[Segment.IMAGE_OBJECT].nonzero().flatten().tolist()

    assert (
        shown(Box(-5, -5, 10, 10)) == shown(Box(0, 0, 0, 0)) == shown(Box(0.5, 0.2, 0.1, 3)) == [4]
    )
    assert shown(Box(50, 20, 99, 99)) == [11]  # not in the bar below
    assert shown(Box(56, 3, 10, 10)) == shown(Box(3, -9, 4, 4)) == []


def test_what_is_cropped_away_has_no_patch(vicuna: CheckpointProcessor) -> None:
    batch = collate(
        Collator(vicuna, ConversationPrompt(), geometry="crop"),
        sample_of((56, 28), Box(0, 0, 12, 12)),
    )

    assert not batch.spans[Segment.IMAGE_OBJECT].any()
    assert not batch.spans[Segment.IMAGE_RANDOM].any()
    assert of_image(batch, Segment.IMAGE_OTHER).all()


def test_a_class_token_is_no_patch(vicuna: CheckpointProcessor) -> None:
    vicuna.config.vision_feature_select_strategy = "full"
    vicuna.hf.vision_feature_select_strategy = "full"  # type: ignore[attr-defined]  # of each family's own class
    batch = collate(Collator(vicuna, ConversationPrompt()), sample_of((28, 28), Box(0, 0, 3, 3)))

    assert of_image(batch, Segment.IMAGE_OBJECT).nonzero().flatten().tolist() == [1]
    assert of_image(batch, Segment.IMAGE_OTHER).sum() == 16
    assert of_image(batch, Segment.IMAGE_BASE).all()
    drawn = of_image(batch, Segment.IMAGE_RANDOM).nonzero().flatten().tolist()
    assert len(drawn) == 1 and drawn[0] > 1
    filled = collate(Collator(vicuna, ConversationPrompt()), sample_of((28, 28), Box(0, 0, 27, 27)))
    assert of_image(filled, Segment.IMAGE_RANDOM).tolist() == [False] + [True] * 16


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box(1, 2, -3, 4), r"Sample 'a' has the box \(1, 2, -3, 4\): .* the last two at least 0"),
        (Box(1, float("nan"), 3, 4), r"the box \(1, nan, 3, 4\): .* must be numbers"),
        (Box(1, 2, float("inf"), 4), r"the box \(1, 2, inf, 4\): .* must be numbers"),
    ],
)
def test_a_box_that_is_none_is_refused(vicuna: CheckpointProcessor, box: Box, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Regions(vicuna, Geometry.PAD).find_masks(
            replace(sample_of((2, 2)), boxes=[box]), [(2, 2)], [16]
        )


@pytest.mark.parametrize("images", [0, 2])
def test_boxes_need_one_image(processor: CheckpointProcessor, images: int) -> None:
    sample = replace(chat_sample(images=images), boxes=[Box(0, 0, 1, 1)])

    with pytest.raises(
        DataError, match=rf"'chat' has boxes and {images} images, .* Give it one image, or no boxes"
    ):
        collate(Collator(processor, ConversationPrompt()), sample)


def test_patches_that_can_not_be_told_are_not_guessed(vicuna: CheckpointProcessor) -> None:
    boxed = sample_of((28, 28), Box(0, 0, 1, 1))
    for count, patch_size in ((15, 7), (16, None)):
        vicuna.hf.patch_size = patch_size  # type: ignore[attr-defined]  # of each family's own class
        regions = Regions(vicuna, Geometry.PAD)

        masks = regions.find_masks(sample_of((28, 28)), [(28, 28)], [count])
        assert masks[Segment.IMAGE_BASE].all() and len(masks[Segment.IMAGE_BASE]) == count
        assert not any(
            masks[Segment(f"image {name}")].any() for name in ("tiles", "padding", "newline")
        )
        with pytest.raises(
            DataError,
            match=r"'a' has boxes, but .* not for this LlavaProcessor. Leave the boxes",
        ):
            regions.find_masks(boxed, [(28, 28)], [count])


def test_distractors_are_as_many_other_things_as_the_question_is_about_and_none_of_its_patches(
    vicuna: CheckpointProcessor,
) -> None:
    corners = [Box(left, top, 13, 13) for left in (0, 14) for top in (0, 14)]  # four patches each
    collator, blank = Collator(vicuna, ConversationPrompt()), Box(7, 0, 13, 13)

    def shown(*boxes: Box, distractors: Sequence[Box], name: str = "a") -> list[list[int]]:
        batch = collate(
            collator, replace(sample_of((28, 28), *boxes, name=name), distractors=distractors)
        )
        return [
            of_image(batch, Segment(f"image {each}")).nonzero().flatten().tolist()
            for each in ("object", "distractor")
        ]

    assert shown(corners[0], distractors=[corners[3]]) == [[0, 1, 4, 5], [10, 11, 14, 15]]
    assert shown(corners[0], distractors=[blank]) == [[0, 1, 4, 5], [2, 6]]
    assert shown(corners[0], corners[1], distractors=corners[2:])[1] == [2, 3, 6, 7, 10, 11, 14, 15]
    assert shown(corners[0], corners[1], distractors=[corners[3]])[1] == [10, 11, 14, 15]
    assert shown(corners[0], distractors=[])[1] == shown(distractors=corners)[1] == []
    drawn = {
        tuple(shown(corners[0], distractors=corners[1:], name=str(number))[1])
        for number in range(20)
    }
    assert len(drawn) == 3  # one of the three at a time, by the sample's id


def test_a_distractor_that_can_not_be_is_refused(vicuna: CheckpointProcessor) -> None:
    sample = replace(sample_of((28, 28), Box(0, 0, 3, 3)), distractors=[Box(0, 0, -1, 3)])

    with pytest.raises(DataError, match=r"Sample 'a' has the box \(0, 0, -1, 3\)"):
        check_region_boxes(sample)


def test_a_box_that_is_a_tuple_is_named() -> None:
    sample = Sample(id="a", images=[picture(1, (28, 28))], boxes=[(1, 2, 3, 4)])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"'a' has the box \(1, 2, 3, 4\).*Box\(left, top"):
        check_region_boxes(sample)


@pytest.mark.parametrize(
    ("box", "leaves"),
    [
        (Box(0, 0, 100, 50), False),
        (Box(-2, 0, 103, 50), False),  # as published boxes do
        (Box(0, 0, 111, 50), True),
        (Box(0, -6, 10, 10), True),
        (Box(300, 10, 5, 5), True),
    ],
)
def test_a_box_that_reaches_far_out_of_its_picture_is_found(box: Box, leaves: bool) -> None:
    assert region_leaves_picture([box], (100, 50)) is leaves
