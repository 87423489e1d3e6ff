"""Images keep their place in a text as the checkpoint's own processor writes it."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_mllm.data import Collator, ConversationPrompt, Geometry
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.rendering import Renderer
from lightning_mllm.data.text.turns import (
    cut_turn_at_images,
    has_image_within_turn,
    join_turn_around_images,
    put_images_first_in_turn,
    strip_turn,
)
from lightning_mllm.errors import DataError
from lightning_mllm.types import Options, Sample, Segment, Turn
from tests.data.conftest import collate, decode, picture
from tests.data.loading.test_datamodule import Memory
from tests.data.text.test_hub_templates import LLAVA_15

IN_ORDER = (
    "{% for m in messages %}{{ m['role'] }}\n{% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
TRIMMED = IN_ORDER.replace("else c['text']", "else c['text'] | trim")
PARTED = [
    ["", " Is this older than ", "?"],
    ["x", "y"],
    ["Both? ", "\n", ""],
    ["", "\nWhat is it?"],
    [" Compare ", " with ", " and\n", ". Which is it?"],
]


def sample_of(parts: list[str], instruction: str = "") -> Sample:
    turn = replace(join_turn_around_images(parts), instruction=instruction)
    images = [picture(30 + 30 * k, 40) for k in range(turn.images)]
    return Sample(id="a", images=images, conversation=[turn, Turn("assistant", "two")])


def content_of(
    parts: list[str], images: list[Image.Image], behind: str = ""
) -> list[dict[str, Any]]:
    """Write what a user of transformers would give, outer blanks stripped."""
    texts = [
        part.lstrip() if not any(map(str.strip, parts[:k])) else part
        for k, part in enumerate(parts)
    ]
    texts[-1] = texts[-1].rstrip() + behind
    content: list[dict[str, Any]] = []
    for k, text in enumerate(texts):
        content += [{"type": "image", "image": images[k - 1]}] * (k > 0) + [
            {"type": "text", "text": text}
        ] * (text != "")
    return content


@pytest.mark.parametrize("template", [IN_ORDER, TRIMMED], ids=["in order", "trimmed"])
@pytest.mark.parametrize("parts", PARTED, ids="<image>".join)
@pytest.mark.parametrize("instruction", ["", "Say a word."])
def test_ids_and_pixels_equal_those_of_the_familys_own_processor(
    vicuna: CheckpointProcessor, template: str, parts: list[str], instruction: str
) -> None:
    vicuna.hf.chat_template = template
    sample = sample_of(parts, instruction)
    images: list[Any] = list(sample.images)
    content = content_of(parts, images, f"\n{instruction}" if instruction else "")
    messages: list[Any] = [{"role": "user", "content": content}]

    batch = collate(
        Collator(vicuna, ConversationPrompt(), geometry=Geometry.CROP), sample
    ).prompts()

    theirs: Any = vicuna.hf.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(batch.input_ids, theirs["input_ids"])
    assert torch.equal(batch.model_inputs()["pixel_values"], theirs["pixel_values"])


def test_the_text_around_images_is_the_question(vicuna: CheckpointProcessor) -> None:
    vicuna.hf.chat_template = IN_ORDER
    sample = replace(
        sample_of(["Is it ", " or rather red or blue as in ", "?"], "Say a word."),
        options=Options("red", "blue"),
    )

    batch = collate(Collator(vicuna, ConversationPrompt()), sample)

    assert decode(vicuna, batch, Segment.QUESTION).replace(" ", "") == "Isitorratherredorblueasin?"
    assert decode(vicuna, batch, Segment.TRUE_OPTION).strip() == "red"
    assert decode(vicuna, batch, Segment.INSTRUCTION).strip() == "Say a word."
    assert not (batch.spans[Segment.IMAGE] & batch.spans[Segment.QUESTION]).any()
    assert batch.spans[Segment.IMAGE].sum() == 2 * 16


def test_images_behind_a_question_are_no_part_of_its_suffix(vicuna: CheckpointProcessor) -> None:
    vicuna.hf.chat_template = IN_ORDER
    batch = collate(
        Collator(vicuna, ConversationPrompt()), sample_of(["What is it? ", ""], "Say a word.")
    )

    assert not (batch.spans[Segment.SUFFIX] & batch.spans[Segment.IMAGE]).any()
    assert batch.spans[Segment.SUFFIX].any()


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["", " Is this older than ", "?"], "Is this older than ?"),
        (["x", "y"], "x y"),
        (["A ", " b"], "A b"),
        (["One\n", "\nTwo"], "One\nTwo"),
        (["What is it?\n", ""], "What is it?"),
    ],
)
def test_a_template_that_puts_images_first_gets_words_that_are_not_glued(
    vicuna: CheckpointProcessor, parts: list[str], text: str
) -> None:
    vicuna.hf.chat_template = LLAVA_15
    turn = join_turn_around_images(parts)

    rendered = Renderer(vicuna).render(Dialogue((turn, Turn("assistant", "two"))))

    assert rendered.text == "USER: " + turn.images * "<image>\n" + f"{text} ASSISTANT: two</s>"


@pytest.mark.parametrize("keeps", [True, False])
def test_images_that_lose_their_place_are_counted_and_said(
    tiny_llava: str, caplog: pytest.LogCaptureFixture, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [
        sample_of(["x", "y"]),
        replace(sample_of(["", "Which?"]), id="b"),
        replace(sample_of(["a", ""]), id="c"),
    ]
    module = Memory(samples, samples[1:2], checkpoint=tiny_llava)
    if keeps:
        monkeypatch.setattr(Renderer, "keeps_places", True)

    with caplog.at_level(logging.WARNING):
        module.setup("fit")

    assert (
        "In 1 turns of the 'train' split (the first is in sample 'a') images stand within"
        in caplog.text
    ) != keeps


def test_a_turn_is_cut_at_its_images_and_stripped() -> None:
    turn = Turn("user", "  a b ", images=2, places=(3, 6))

    assert cut_turn_at_images(turn) == ["  a", " b ", ""]
    assert strip_turn(turn) == Turn("user", "a b ", images=2, places=(1, 4))
    assert strip_turn(Turn("user", " a ", images=1, places=(0,))) == Turn("user", "a", images=1)
    assert cut_turn_at_images(Turn("user", "a", images=2)) == ["", "", "a"]
    assert put_images_first_in_turn(turn).text == "a b"
    assert has_image_within_turn(turn)
    assert not has_image_within_turn(Turn("user", "a", images=1, places=(1,)))


@pytest.mark.parametrize("places", [(1,), (2, 1), (0, 9), (-1, 0)])
def test_places_that_a_text_has_not_are_refused(places: tuple[int, ...]) -> None:
    turns = [Turn("user", "abc", images=2, places=places), Turn("assistant", "x")]
    sample = Sample(id="a", images=[picture(), picture()], conversation=turns)

    with pytest.raises(
        DataError,
        match=r"turn 1 of sample 'a' are .* one per image, in order, within its 3 characters",
    ):
        ConversationPrompt().dialogue(sample, (), 0)
