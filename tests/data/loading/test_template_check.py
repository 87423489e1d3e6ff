"""A chat template that alters texts, or writes the day's date, is found at set-up."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from lightning_mllm.data import ClassificationPrompt, Collator, ConversationPrompt, load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.loading import datamodule as base_module
from lightning_mllm.data.loading.template_check import check_template_date
from lightning_mllm.errors import CheckpointError
from lightning_mllm.models.tiny import CHAT_TEMPLATES
from lightning_mllm.types import Sample, Turn
from tests.conftest import TinyBuilder
from tests.data.conftest import NAMES, chat_sample, labelled
from tests.data.loading.test_datamodule import TRAIN, Memory
from tests.data.text.test_hub_templates import TEMPLATES, hub_processor
from tests.support.families import FAMILIES, ONE, TURNS, reads

VICUNA = CHAT_TEMPLATES["vicuna"]
ALTERED = {
    "upper": "part['text'] | upper",
    "first characters": "part['text'][:12]",
    "behind a word": "part['text'].split('</think>')[-1]",
    "replaced": "part['text'] | replace('\n', ' ')",
    "only the answer": "part['text'] | lower if message['role'] == 'assistant' else part['text']",
    "if it says so": (
        "part['text'].replace('red', 'blue') if 'red' in part['text'] else part['text']"
    ),
}


def says(name: str, *texts: str) -> Sample:
    roles: list[Any] = ["user", "assistant"] * len(texts)
    turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]
    return Sample(id=name, conversation=turns)


@pytest.fixture
def set_up(tiny_llava: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Memory]:
    """Set up data with a checkpoint whose template is another."""

    def set_up(template: str, *samples: Sample) -> Memory:
        def load(*options: object) -> CheckpointProcessor:
            processor = load_processor(tiny_llava)
            processor.hf.chat_template = template
            return processor

        monkeypatch.setattr(base_module, "load_processor", load)
        module = Memory(samples, samples[:1], checkpoint=tiny_llava)
        module.setup("fit")
        return module

    return set_up


@pytest.mark.parametrize("case", ALTERED)
def test_a_template_that_alters_a_text_is_refused_wherever_that_text_is(
    set_up: Callable[..., Memory], case: str
) -> None:
    long = [says(str(k), "word " * 60, "two words more") for k in range(6)]
    odd = says(
        "odd",
        "Is it\nred?</think> What else?",
        "Yes.",
        "And that thing?",
        "A thing that is NOT so.",
    )

    with pytest.raises(
        CheckpointError,
        match=r"alters the texts of sample '\w+': it writes '.*' where '.*' was expe",
    ):
        set_up(
            VICUNA.replace("part['text']", ALTERED[case]),
            *long,
            odd,
            *(says(f"a{k}", "x?", "y") for k in range(9)),
        )


@pytest.mark.parametrize("case", ["upper", "first characters", "replaced", "only the answer"])
def test_it_is_refused_where_other_samples_have_as_many_turns(
    set_up: Callable[..., Memory], case: str
) -> None:
    short = [says(str(k), "42?", "7") for k in range(3)]

    with pytest.raises(CheckpointError, match="alters the texts of sample 'odd'"):
        set_up(
            VICUNA.replace("part['text']", ALTERED[case]),
            *short,
            says("odd", "Is it\nred or so?", "A long one."),
        )


def test_a_text_that_is_not_altered_passes(set_up: Callable[..., Memory]) -> None:
    set_up(VICUNA.replace("part['text']", ALTERED["behind a word"]), says("a", "Is it?", "yes"))
    set_up(VICUNA.replace("part['text']", "part['text'] | trim"), says("a", " Is it? ", "yes "))


def test_a_labelled_sample_is_tried_too(set_up: Callable[..., Memory]) -> None:
    with pytest.raises(CheckpointError, match="alters the texts of sample 'train-"):
        set_up(VICUNA.replace("part['text']", "part['text'] | capitalize"), *TRAIN)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_templates_of_the_hub_alter_nothing(
    tiny_checkpoint: TinyBuilder, template: str
) -> None:
    processor = hub_processor(template, tiny_checkpoint)

    Collator(processor, ConversationPrompt(system="Be brief.")).check_template(
        chat_sample(images=3)
    )
    Collator(processor, ClassificationPrompt(), NAMES).check_template(labelled())


@pytest.mark.parametrize(
    "when",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%Y') }}{% endif %}",
    ],
)
def test_a_template_with_todays_date_warns(
    set_up: Callable[..., Memory], caplog: pytest.LogCaptureFixture, when: str
) -> None:
    with caplog.at_level(logging.WARNING):
        set_up(f"Today is {when}. {VICUNA}", says("a", "Is it?", "yes"))

    assert (
        caplog.text.count("writes today's date, so that losses and scores change with the day") == 1
    )


@pytest.mark.parametrize(
    "template", [VICUNA, "{% if false %}{{ strftime_now('%Y') }}{% endif %}26 Jul 2024 " + VICUNA]
)
def test_a_template_without_todays_date_does_not(
    vicuna: CheckpointProcessor, caplog: pytest.LogCaptureFixture, template: str
) -> None:
    vicuna.hf.chat_template = template
    with caplog.at_level(logging.WARNING):
        check_template_date(vicuna, "a")

    assert not caplog.records


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_a_date_is_found_and_texts_are_unaltered(
    tiny_family: Callable[[Any], str], caplog: pytest.LogCaptureFixture, family: str
) -> None:
    processor = load_processor(tiny_family(family))
    sample = TURNS if reads(family, TURNS) else ONE

    with caplog.at_level(logging.WARNING):
        check_template_date(processor, family)
        assert family not in caplog.text
        Collator(processor, ConversationPrompt()).check_template(sample)
        date = "{% if strftime_now is defined %}{{ strftime_now('%d %b') }}{% endif %}"
        processor.hf.chat_template = date + processor.chat_template
        check_template_date(processor, family)
    assert "writes today's date" in caplog.text
