"""Questions that list some of the classes, or none."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_mllm.data import ClassificationPrompt
from lightning_mllm.data.datasets.asked import ask_about_samples
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample
from tests.data.conftest import picture
from tests.data.loading.test_datamodule import Memory

NAMES = [f"class {k}" for k in range(30)]
SAMPLES = [Sample(id=f"{k}", label=NAMES[k % 30], images=[picture(20, 24)]) for k in range(90)]


def test_the_right_class_is_among_those_listed_and_the_others_are_drawn_evenly() -> None:
    prompt = ClassificationPrompt(listed=5)
    others: Counter[str] = Counter()
    for epoch in range(4):
        for sample in SAMPLES:
            names = prompt.class_order(sample, NAMES, epoch)
            assert len({*names}) == len(names) == 5
            assert sample.label in names
            assert names == prompt.class_order(sample, NAMES, epoch)
            others.update({*names} - {sample.label})
    assert min(others.values()) > 20


def test_as_many_as_there_are_is_the_whole_list_in_the_same_order() -> None:
    for sample in SAMPLES[:5]:
        orders = [
            ClassificationPrompt(listed=listed).class_order(sample, NAMES, 0)
            for listed in (None, 30, 99)
        ]
        assert orders[0] == orders[1] == orders[2]


def test_no_list_needs_no_other_question() -> None:
    dialogue = ClassificationPrompt(lists_classes=False).dialogue(SAMPLES[0], NAMES, 0)
    assert "class" not in dialogue.turns[0].text
    with pytest.raises(ConfigError, match="listed is 3 and lists_classes is False"):
        ClassificationPrompt(listed=3, lists_classes=False)


def test_a_list_that_is_too_long_is_refused_before_any_picture_is_looked_at(
    tiny_llava: str, caplog: pytest.LogCaptureFixture
) -> None:
    absent = [replace(sample, images=[Path("absent")]) for sample in SAMPLES]
    options = {"checkpoint": tiny_llava, "max_length": 150}
    with pytest.raises(DataError, match=r"lists 30 classes does not fit.*lists_classes false"):
        Memory(absent, SAMPLES, **options).setup("fit")

    with caplog.at_level(logging.WARNING):
        module = Memory(SAMPLES, SAMPLES, prompt=ClassificationPrompt(listed=3), **options)
        module.setup("fit")

    assert "lists 3 of the 30 classes, the right one among them" in caplog.text
    assert next(iter(module.train_dataloader())).input_ids.shape[1] <= 150


def test_pictures_of_unknown_class_are_not_asked_with_a_drawn_list(tiny_llava: str) -> None:
    data = Memory(SAMPLES, SAMPLES, checkpoint=tiny_llava, prompt=ClassificationPrompt(listed=3))
    asked = [replace(SAMPLES[0], label=None)]
    with pytest.raises(ConfigError, match="lists some of the classes"):
        ask_about_samples(asked, (tiny_llava, None, False), data)
    ask_about_samples(asked, (tiny_llava, None, False), data, question="What?")
