"""Segments of every family: features, what frames them, and the text around both."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import ClassificationPrompt, Collator, ConversationPrompt
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.data.text.prompts import PlainPrompt, Prompt
from lightning_mllm.data.text.special_tokens import find_special_token_ids
from lightning_mllm.types import IGNORE_INDEX, Options, Sample, Segment, Turn
from tests.data.conftest import NAMES, collate, decode, tokens
from tests.support.families import (
    FAMILIES,
    ONE,
    TEXT,
    TURNS,
    WITHIN,
    readable,
    reads,
)
from tests.support.feature_samples import picture

Processors = Callable[[Any], CheckpointProcessor]
WITHOUT_FRAME = ("qwen", "llava", "vipllava", "granite", "paligemma", "paddleocr", "lighton")
JAR = Sample(
    id="jar",
    images=[picture(9, (50, 40))],
    kind="choose",
    options=Options("full", "empty"),
    conversation=[Turn("user", "Is it full or empty?", images=1), Turn("assistant", "full")],
)


def positions(batch: MultimodalBatch, segment: Segment, row: int) -> list[int]:
    return batch.spans[segment][row].nonzero().flatten().tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_are_what_they_say(
    family_processor: Processors, family: str, side: PaddingSide
) -> None:
    processor = family_processor(family)
    collator = Collator(processor, ConversationPrompt(), padding_side=side)
    samples = readable(family, ONE, WITHIN, TURNS, TEXT)

    batch = collate(collator, *samples)

    real, image = batch.attention_mask.bool(), batch.spans[Segment.IMAGE]
    assert torch.equal(image, batch.input_ids == processor.feature_token_id)
    assert torch.equal(batch.spans[Segment.TEXT], real & ~image)
    frame = batch.spans[Segment.IMAGE_FRAME]
    others = ("image", "question", "instruction", "answer", "suffix")
    for name in others:
        assert not (frame & batch.spans[Segment(name)]).any(), name
    for row, sample in enumerate(samples):
        texts = [collator.find_image_text(shown.size) for shown in sample.images]  # type: ignore[union-attr]
        assert image[row].sum() == sum(text.features for text in texts)
        assert frame[row].sum() == sum(text.frame for text in texts)
        words = [turn.text for turn in sample.conversation if turn.role == "user"]
        found = decode(processor, batch, Segment.QUESTION, row)
        assert "".join(found.split()) == "".join("".join(words).split())
        (last,) = positions(batch, Segment.LAST, row)
        assert positions(batch, Segment.ANSWER, row)[-1] == int(real[row].nonzero()[-1])
        assert batch.labels[row, last] == IGNORE_INDEX
        answer = batch.labels[row, last + 1 :][batch.labels[row, last + 1 :] != IGNORE_INDEX]
        said = processor.tokenizer.decode(answer, skip_special_tokens=True)
        assert str(said).strip() == sample.conversation[-1].text
        assert answer[-1] == batch.end_id
        suffix = positions(batch, Segment.SUFFIX, row)
        question = positions(batch, Segment.QUESTION, row)[-1]
        assert suffix == [at for at in range(question + 1, last) if not (image | frame)[row, at]]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_images_tokens_are_those_of_the_text_that_stands_for_it(
    family_processor: Processors, family: str
) -> None:
    processor = family_processor(family)
    collator = Collator(processor, ConversationPrompt())

    batch = collate(collator, ONE)

    text = collator.find_image_text(ONE.images[0].size)  # type: ignore[union-attr]
    both = batch.spans[Segment.IMAGE][0] | batch.spans[Segment.IMAGE_FRAME][0]
    parts = text.text.split(processor.feature_token)
    whole = parts[0]
    for run, part in zip(text.runs, parts[1:], strict=True):
        whole += processor.feature_token * run + part
    decoded = processor.tokenizer.decode(batch.input_ids[0][both])
    assert decoded in (whole, f"\n{whole}")  # Gemma 3's line breaks become one token with another
    has_frame = not family.startswith(WITHOUT_FRAME) or family == "llava_pixtral"
    assert bool(text.frame) == has_frame


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_fits_to_the_token_stays_and_what_is_one_longer_does_not(
    family_processor: Processors, family: str
) -> None:
    processor, prompt = family_processor(family), ConversationPrompt()
    sample = TURNS if reads(family, TURNS) else ONE
    length = len(tokens(collate(Collator(processor, prompt), sample), 0))

    fits = Collator(processor, prompt, max_length=length)
    assert len(tokens(collate(fits, sample), 0)) == length
    short = Collator(processor, prompt, max_length=length - 1)
    texts = [short.find_image_text(shown.size) for shown in sample.images]  # type: ignore[union-attr]
    assert fits.fit(sample, texts) is not None
    if sample is ONE:
        assert short.fit(sample, texts) is None
        return
    rest = replace(sample, images=sample.images[1:], conversation=sample.conversation[2:])
    left, alone = collate(short, sample), collate(short, rest)
    assert torch.equal(left.input_ids, alone.input_ids)
    assert left.image_counts == (1,)


@pytest.mark.parametrize(
    "prompt", [ClassificationPrompt(), PlainPrompt()], ids=["classification", "plain"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_labels_tokens_are_those_behind_the_real_prompt(
    family_processor: Processors, family: str, prompt: Prompt
) -> None:
    collator = Collator(family_processor(family), prompt, NAMES)
    first = Sample(id="first", images=[picture(1, (40, 30))], label="two")

    labels = collator.label_set(first)

    for name, ids in zip(NAMES, labels.token_ids, strict=True):
        batch = collate(collator, Sample(id="a", images=[picture(2, (90, 50))], label=name))
        assert tuple(batch.labels[batch.labels != IGNORE_INDEX].tolist()) == ids


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_answer_forms_are_the_tokens_behind_the_real_prompt(
    family_processor: Processors, family: str
) -> None:
    collator = Collator(family_processor(family), ConversationPrompt())

    (forms,) = collate(collator, JAR).answers

    assert forms is not None and forms.false is not None
    for word, ids in (("full", forms.true.lower), ("Empty", forms.false.capitalised)):
        turns = [JAR.conversation[0], Turn("assistant", word)]
        batch = collate(collator, replace(JAR, conversation=turns))
        answer = batch.labels[batch.labels != IGNORE_INDEX].tolist()
        assert tuple(answer[: len(ids)]) == ids
        special = find_special_token_ids(collator.processor.tokenizer)
        assert special.isdisjoint(ids) and special.issuperset(answer[len(ids) :])


def test_a_token_of_template_and_frame_belongs_to_the_frame(
    family_processor: Processors,
) -> None:
    """Gemma 3's template ends a line before the frame, which begins with two line breaks."""
    processor = family_processor("gemma3")
    breaks = processor.tokenizer.encode("\n\n\n", add_special_tokens=False)
    batch = collate(Collator(processor, ConversationPrompt()), ONE)

    first = positions(batch, Segment.IMAGE_FRAME, 0)[0]

    assert len(breaks) == 1
    assert batch.input_ids[0, first] == breaks[0]
