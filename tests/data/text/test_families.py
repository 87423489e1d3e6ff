"""Token ids and pixels are those that each family's own processor makes of a conversation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.types import Sample, Segment
from tests.data.conftest import collate
from tests.support.families import (
    FAMILIES,
    ONE,
    PREFIX,
    SAMPLES,
    SPLIT,
    TEXT,
    TURNS,
    WITHIN,
    ask_own,
    call_own,
    join_rows,
    readable,
    reads,
)

Processors = Callable[[Any], CheckpointProcessor]
# what their own processors do to pictures, which this package pads by default
GEOMETRIES: dict[str, GeometryName] = {
    **dict.fromkeys(("llava", "llava_dinov2", "vipllava"), "crop"),
    **dict.fromkeys(("llava_siglip", "llava_vit"), "squash"),
}


def collator_of(family: str, processor: CheckpointProcessor, **options: Any) -> Collator:
    return Collator(processor, ConversationPrompt(), geometry=GEOMETRIES.get(family), **options)


def assert_same_inputs(
    family: str, batch: MultimodalBatch, theirs: dict[str, Any], side: PaddingSide = "right"
) -> None:
    """Compare all that the model's forward takes; positions are compared elsewhere."""
    ours = batch.model_inputs()
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["attention_mask"], theirs["attention_mask"])
    if family in SPLIT and batch.images:
        ours, theirs = ours | join_rows(ours), theirs | join_rows(theirs)
    text = ("input_ids", "attention_mask", "position_ids")
    for name in set(ours) - set(text):
        assert torch.equal(ours[name], theirs[name]), name
    unseen = {name for name in theirs if name not in ours}
    assert unseen <= {"mm_token_type_ids", "labels", "image_sizes", "batch_num_images"}, unseen


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_what_the_familys_own_processor_makes(
    family_processor: Processors, family: str, sample: Sample
) -> None:
    processor = family_processor(family)
    if not reads(family, sample) or (family in PREFIX and (sample.system or not sample.images)):
        pytest.skip("the family's own processor takes no such conversation")
    collator = collator_of(family, processor)

    batch = collate(collator, sample).prompts()

    theirs = call_own(processor, [ask_own(collator, family, sample)], [sample.images])
    assert_same_inputs(family, batch, theirs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_unequal_pictures_is_what_the_familys_own_processor_makes(
    family_processor: Processors, family: str, side: PaddingSide
) -> None:
    processor = family_processor(family)
    collator = collator_of(family, processor, padding_side=side)
    samples = readable(family, ONE, WITHIN, TURNS)
    ends = [sample.conversation[-1].text for sample in samples]

    batch = collate(collator, *samples)

    texts = [ask_own(collator, family, sample) for sample in samples]
    if family in PREFIX:
        options: dict[str, Any] = {"suffix": ends}
    else:
        rendered = [
            collator.renderer.render(collator.prompt.dialogue(sample, (), 0)) for sample in samples
        ]
        texts = [
            text + whole.text[whole.answers[-1].start :]
            for text, whole in zip(texts, rendered, strict=True)
        ]
        options = {}
    pictures = [sample.images for sample in samples]
    theirs = call_own(processor, texts, pictures, padding=True, padding_side=side, **options)
    assert_same_inputs(family, batch, theirs)
    if family in PREFIX:
        assert torch.equal(batch.labels, theirs["labels"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_text_alone_has_neither_images_nor_frames(
    family_processor: Processors, family: str
) -> None:
    batch = collate(collator_of(family, family_processor(family)), TEXT, ONE)

    assert not batch.spans[Segment.IMAGE][0].any()
    assert not batch.spans[Segment.IMAGE_FRAME][0].any()
    assert batch.image_counts == (0, 1)
