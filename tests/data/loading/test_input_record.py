"""What a run says of how it makes a model's inputs, so that an export can say it too."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_mllm.data import (
    VICUNA_SYSTEM,
    ClassificationPrompt,
    ConversationPrompt,
    PlainPrompt,
    Prompt,
)
from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.loading.input_record import geometry_of_input_record
from lightning_mllm.models.tiny import Chat
from lightning_mllm.types import Sample, Turn
from tests.conftest import TinyBuilder
from tests.data.conftest import chat_sample, labelled
from tests.data.loading.test_datamodule import Memory
from tests.data.text.test_hub_templates import LLAVA_16_VICUNA
from tests.support.families import FAMILIES, ONE, TURNS, VICUNA_LIKE, reads


def _described(
    checkpoint: str, sample: Sample, template: str | None = None, **options: Any
) -> dict[str, Any]:
    data = Memory([sample], [sample], checkpoint=checkpoint, **options)
    data.setup("fit")
    if template is not None:
        data.processor.hf.chat_template = template
    return data.describe_inputs()


@pytest.mark.parametrize("chat", ["vicuna", "llama3"])
@pytest.mark.parametrize(
    ("sample", "prompt"),
    [
        (chat_sample(images=1), None),
        (labelled(), None),
        (labelled(), ClassificationPrompt(system=VICUNA_SYSTEM)),
    ],
    ids=["conversation", "classes", "system"],
)
def test_what_is_asked_is_what_the_chat_template_writes(
    tiny_checkpoint: TinyBuilder, chat: Chat, sample: Sample, prompt: Prompt | None
) -> None:
    inputs = _described(tiny_checkpoint("llava", chat), sample, prompt=prompt)

    if (
        sample.conversation and chat == "vicuna"
    ):  # its template leaves out the end of earlier answers
        inputs["asked"] = inputs["asked"].replace("</s>", " ")
    assert inputs["asked"] == inputs["template"]


@pytest.mark.parametrize(
    "case",
    [
        (
            chat_sample(images=1),
            ConversationPrompt(cue=" It is"),
            None,
            "ASSISTANT: It is",
            "ASSISTANT:",
        ),
        (labelled(), PlainPrompt(), None, "<image>", "USER: <image>\n ASSISTANT:"),
        (
            labelled(),
            ClassificationPrompt(system="Be brief.", instruction="", question="Which? {classes}"),
            LLAVA_16_VICUNA,
            'Be brief. USER: <image>\nWhich? "two" ASSISTANT:',
            'Be brief.Be brief. USER: <image>\nWhich? "two" ASSISTANT:',
        ),
    ],
    ids=["cue", "plain", "system twice"],
)
def test_what_the_chat_template_writes_otherwise_is_told_apart(
    tiny_llava: str, case: tuple[Any, ...]
) -> None:
    sample, prompt, template, asked, written = case
    inputs = _described(tiny_llava, sample, template, prompt=prompt)

    assert inputs["asked"] != inputs["template"]
    assert inputs["asked"].endswith(asked)
    assert inputs["template"].endswith(written)


@pytest.mark.parametrize(("geometry", "expected"), [(None, "pad"), ("crop", "crop")])
def test_the_geometry_is_that_of_validation(
    tiny_llava: str, geometry: GeometryName | None, expected: str
) -> None:
    options = {"geometry": geometry, "train_geometry": "squash"}
    assert _described(tiny_llava, labelled(), **options)["geometry"] == expected


ASKED = {
    "geometry": "pad",
    "asked": "USER: Which? ASSISTANT:",
    "template": "USER: Which? ASSISTANT:",
}


@pytest.mark.parametrize(
    ("record", "asked", "expected", "warning"),
    [
        ({}, None, None, ""),
        ({}, "crop", "crop", ""),
        ({"inputs": ASKED}, None, "pad", ""),
        ({"inputs": ASKED}, "pad", "pad", ""),
        (
            {"inputs": ASKED},
            "squash",
            "squash",
            "validated with geometry 'pad'; 'squash' is exported",
        ),
        (
            {"inputs": ASKED, "edited": True},
            None,
            "pad",
            "changed the model's computations in training",
        ),
        (
            {"inputs": {**ASKED, "asked": f"{'Be brief. ' * 30}USER: Which? ASSISTANT:"}},
            None,
            "pad",
            "It was asked 'Be brief. .*template makes 'USER: Which. ASSISTANT:' of this",
        ),
        (
            {"inputs": {**ASKED, "template": "USER: Which?"}},
            None,
            "pad",
            "It was asked '.* ASSISTANT:', the template",
        ),
    ],
)
def test_what_an_export_cannot_carry_is_said(
    caplog: pytest.LogCaptureFixture, record: Any, asked: Any, expected: str | None, warning: str
) -> None:
    found = geometry_of_input_record(record, SimpleNamespace(geometry=asked))

    assert found == expected
    if warning:
        assert re.search(warning, caplog.text)
    else:
        assert not caplog.records


def test_a_checkpoint_that_says_no_geometry_is_exported_with_the_default_and_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert geometry_of_input_record({"policy": "ZeroShot()"}, None) is None
    assert "does not say how pictures were made square" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_what_every_family_is_asked_is_what_its_chat_template_writes(
    tiny_family: Callable[[Any], str], family: str
) -> None:
    sample = TURNS if reads(family, TURNS) else ONE

    inputs = _described(tiny_family(family), sample)

    if family in VICUNA_LIKE:  # their templates leave out the end of earlier answers
        inputs["asked"] = inputs["asked"].replace("</s>", " ")
    assert inputs["asked"] == inputs["template"]


def test_the_history_is_written_as_the_chat_template_writes_it(
    tiny_family: Callable[[Any], str],
) -> None:
    """LLaVA-OneVision's writes other blanks before an answer than it asks with."""
    more = [Turn("user", "And now?"), Turn("assistant", "no")]
    sample = Sample(id="a", images=ONE.images, conversation=[*ONE.conversation, *more])

    inputs = _described(tiny_family("llava_onevision"), sample)

    assert "assistant \nred" in inputs["asked"]
    assert inputs["asked"] == inputs["template"]
