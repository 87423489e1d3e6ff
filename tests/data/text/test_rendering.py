from typing import Any

import pytest

from lightning_mllm.data import load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.rendering import RenderedText, Renderer
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.types import Segment, Turn
from tests.data.text.test_hub_templates import LLAVA_15

EXCHANGE = (Turn("user", "What is it?", "Say a word.", images=2), Turn("assistant", "two"))
DIALOGUE = Dialogue(
    (*EXCHANGE, Turn("user", "ASSISTANT: two"), Turn("assistant", "two")), system="Be brief."
)

CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] | trim }}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def texts(rendered: RenderedText, segment: Segment) -> list[str]:
    return [
        rendered.text[slot.start : slot.end] for slot in rendered.slots if slot.segment is segment
    ]


def answers(rendered: RenderedText) -> list[str]:
    return [rendered.text[place.start : place.end] for place in rendered.answers]


def test_the_prompt_is_what_the_chat_template_writes(processor: CheckpointProcessor) -> None:
    text = [{"type": "text", "text": "What is it?\nSay a word."}]
    messages: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, *text]},
    ]
    expected = processor.hf.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )

    rendered = Renderer(processor).render(Dialogue(EXCHANGE, system="Be brief."))

    assert rendered.text[: rendered.answers[0].start] == expected


@pytest.mark.parametrize("template", [None, LLAVA_15], ids=["tiny", "hub"])
def test_every_text_has_its_place(processor: CheckpointProcessor, template: str | None) -> None:
    processor.hf.chat_template = template or processor.chat_template

    rendered = Renderer(processor).render(DIALOGUE)

    assert texts(rendered, Segment.SYSTEM) == ["Be brief."]
    assert texts(rendered, Segment.QUESTION) == ["What is it?", "ASSISTANT: two"]
    assert texts(rendered, Segment.INSTRUCTION) == ["Say a word."]
    assert texts(rendered, Segment.ANSWER) == ["two", "two"]
    assert rendered.text.count("<image>") == 2


def test_the_hub_template_becomes_vicunas_format(vicuna: CheckpointProcessor) -> None:
    vicuna.hf.chat_template = LLAVA_15

    rendered = Renderer(vicuna).render(DIALOGUE)

    assert rendered.text == (
        "Be brief. USER: <image>\n<image>\nWhat is it?\nSay a word. ASSISTANT: two</s>"
        "USER: ASSISTANT: two ASSISTANT: two</s>"
    )
    assert answers(rendered) == [" two</s>", " two</s>"]


def test_an_end_that_the_template_writes_is_not_written_twice(
    tiny_llava_llama3: str, vicuna: CheckpointProcessor
) -> None:
    assert (
        answers(Renderer(load_processor(tiny_llava_llama3)).render(DIALOGUE))
        == ["two<|eot_id|>"] * 2
    )
    vicuna.hf.chat_template = CHATML
    rendered = Renderer(vicuna).render(DIALOGUE)
    assert answers(rendered) == ["two</s>"] * 2
    assert "two</s>\n<s>user" in rendered.text


def test_a_template_that_rewrites_earlier_turns_is_refused(vicuna: CheckpointProcessor) -> None:
    vicuna.hf.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    )

    with pytest.raises(CheckpointError, match="rewrites earlier turns"):
        Renderer(vicuna).render(Dialogue((Turn("user", "a"), Turn("assistant", "b"))))


@pytest.mark.parametrize("sign", ["", " x\n", "  "])
def test_of_blanks_before_answers_only_those_at_the_end_of_a_line_may_be_new(
    vicuna: CheckpointProcessor, sign: str
) -> None:
    """LLaVA-OneVision asks with "assistant\\n", and writes "assistant \\n" before answers."""
    asking = "{% if add_generation_prompt %}assistant\n{% endif %}"
    answering = "{% for m in messages %}{{ m['role'] }}SIGN\n{{ m['content'][-1]['text'] }}</s>"
    template = answering + "{% endfor %}" + asking
    dialogue = Dialogue(
        (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    )

    vicuna.hf.chat_template = template.replace("SIGN", " ")
    rendered = Renderer(vicuna).render(dialogue)
    assert rendered.text == "user \na</s>assistant \nb</s>user \nc</s>assistant\nd</s>"
    assert answers(rendered) == ["b</s>", "d</s>"]
    vicuna.hf.chat_template = template.replace("SIGN\n", sign)
    with pytest.raises(CheckpointError, match="rewrites earlier turns"):
        Renderer(vicuna).render(dialogue)


def test_a_template_that_drops_the_system_text_is_refused(vicuna: CheckpointProcessor) -> None:
    vicuna.hf.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}"
        "{{ m['content'][-1]['text'] }}</s>{% endfor %}"
    )

    with pytest.raises(
        CheckpointError, match=r"system text exactly once, .* Set `prompt.system: null`"
    ):
        Renderer(vicuna).render(
            Dialogue((Turn("user", "a"), Turn("assistant", "b")), system="Be brief.")
        )


def test_a_template_of_turns_in_tokens_that_drops_the_system_text_is_refused(
    vicuna: CheckpointProcessor,
) -> None:
    vicuna.hf.chat_template = CHATML.replace(
        "messages %}", "messages if m['role'] != 'system' %}", 1
    )

    with pytest.raises(
        CheckpointError, match=r"turns open with '<s>user.*Set `prompt.system: null`"
    ):
        Renderer(vicuna).render(DIALOGUE)


def test_a_dropped_system_text_is_put_before_turns_that_open_with_words(
    vicuna: CheckpointProcessor,
) -> None:
    vicuna.hf.chat_template = LLAVA_15.replace(
        "in messages %}", "in messages if message['role'] != 'system' %}", 1
    )
    for bos in ("", "{{ bos_token }}"):
        vicuna.hf.chat_template = bos + vicuna.chat_template
        rendered = Renderer(vicuna).render(DIALOGUE)
        assert rendered.text.removeprefix("<s>").startswith("Be brief. USER: <image>\n")
        assert texts(rendered, Segment.SYSTEM) == ["Be brief."]


def test_an_answer_may_end_with_a_special_token_without_a_role(tiny_llava_llama3: str) -> None:
    processor = load_processor(tiny_llava_llama3)
    processor.tokenizer.eos_token = "<pad>"
    assert answers(Renderer(processor).render(DIALOGUE)) == ["two<|eot_id|>"] * 2


def test_a_template_that_refuses_the_system_text_is_reported(vicuna: CheckpointProcessor) -> None:
    vicuna.hf.chat_template = "{{ raise_exception('no system role') }}"

    with pytest.raises(
        ConfigError, match=r"of \['system', 'user'\]: no system role. Set `prompt.system: null`"
    ):
        Renderer(vicuna).render(
            Dialogue((Turn("user", "a"), Turn("assistant", "b")), system="Be brief.")
        )


def test_a_template_that_ends_an_answer_with_mere_text_is_refused(
    vicuna: CheckpointProcessor,
) -> None:
    vicuna.hf.chat_template = (
        "{% for m in messages %}{{ m['content'][-1]['text'] }} ###{% endfor %}"
    )

    with pytest.raises(CheckpointError, match="no special token can end the answer"):
        Renderer(vicuna).render(Dialogue((Turn("user", "a"), Turn("assistant", "b"))))


def test_a_turn_may_be_an_image_alone(processor: CheckpointProcessor) -> None:
    rendered = Renderer(processor).render(
        Dialogue((Turn("user", "", images=1), Turn("assistant", "two")))
    )

    assert rendered.text.count("<image>") == 1
    assert texts(rendered, Segment.QUESTION) == []
