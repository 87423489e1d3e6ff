"""A patch's place is the part of the picture that a box of it alone touches."""

from __future__ import annotations

import pytest
import torch

from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.patch_places import PatchPlace, find_patch_places
from lightning_mllm.types import Box, Sample, Segment
from tests.conftest import TinyBuilder
from tests.data.conftest import TEXT_ONLY, chat_sample, collate
from tests.support.boxes import sample_of


def of(collator: Collator, sample: Sample) -> list[PatchPlace | None]:
    spans = collate(collator, sample).spans
    count = int((spans[Segment.IMAGE] & ~spans[Segment.IMAGE_NEWLINE]).sum())
    places = find_patch_places(sample, collator, count)
    assert places is not None and len(places) == count
    return places


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "internvl", "gemma3"])
def test_a_box_in_the_middle_of_a_place_is_shown_by_this_patch(
    tiny_checkpoint: TinyBuilder, family: str
) -> None:
    processor = load_processor(tiny_checkpoint(family, None))  # type: ignore[arg-type]
    collator = Collator(processor, ConversationPrompt())
    size = (90, 41)
    for number, place in enumerate(of(collator, sample_of(size))):
        assert place is not None
        x, y = (place.left + place.right) / 2, (place.top + place.bottom) / 2
        inside = x - 0.5 >= 0 and x + 0.5 <= size[0] and y - 0.5 >= 0 and y + 0.5 <= size[1]
        if number % 7 or not inside:
            continue
        spans = collate(collator, sample_of(size, Box(x - 0.5, y - 0.5, 0, 0))).spans
        patches = spans[Segment.IMAGE] & ~spans[Segment.IMAGE_NEWLINE]
        assert bool(spans[Segment.IMAGE_OBJECT][patches][number])


def test_places_of_a_picture_part_it_and_reach_into_the_padding(
    tiny_checkpoint: TinyBuilder,
) -> None:
    collator = Collator(load_processor(tiny_checkpoint("llava", None)), ConversationPrompt())
    places = [each for each in of(collator, sample_of((90, 41))) if each is not None]

    assert min(each.left for each in places) == 0 and max(each.right for each in places) == 90
    assert min(each.top for each in places) < 0 and max(each.bottom for each in places) > 41
    areas = torch.tensor([(p.right - p.left) * (p.bottom - p.top) for p in places])
    assert float(areas.sum()) == pytest.approx(90 * 90)


def test_several_pictures_or_none_have_no_places(tiny_checkpoint: TinyBuilder) -> None:
    collator = Collator(load_processor(tiny_checkpoint("llava", None)), ConversationPrompt())

    assert find_patch_places(chat_sample(images=2), collator, 2) is None
    assert find_patch_places(TEXT_ONLY, collator, 0) is None
    assert find_patch_places(sample_of((90, 41)), collator, 1) is None  # another family's count
