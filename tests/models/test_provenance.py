"""What a finding is about changes with all that decides it, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.provenance import provenance
from lightning_mllm.types import Box, Options, Sample, Turn

SAMPLE = Sample(
    id="a",
    images=[Path("here/1.jpg")],
    conversation=[Turn("user", "Is it red or blue?", images=1), Turn("assistant", "red")],
    kind="choose",
    boxes=[Box(1, 2, 3, 4)],
    options=Options("red", "blue"),
    picture="1",
)


@pytest.fixture(scope="module")
def module(tiny_llava: str) -> MLLMModule:
    module = MLLMModule(tiny_llava)
    module.configure_model()
    module._loaded_steps = 3  # as of a checkpoint; without a Trainer nothing else knows
    return module


def about(module: MLLMModule, *samples: Sample) -> dict[str, Any]:
    collator = SimpleNamespace(prompt="prompt", geometry="pad", max_length=99)
    return provenance(
        module, SimpleNamespace(samples={"test": samples}, eval_collator=collator), "test"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"id": "b"},
        {"label": "red"},
        {"conversation": [*SAMPLE.conversation[:1], Turn("assistant", "blue")]},
        {"conversation": [Turn("user", "Is it blue or red?", images=1), *SAMPLE.conversation[1:]]},
        {"kind": "query"},
        {"boxes": [Box(1, 2, 3, 5)]},
        {"boxes": []},
        {"options": Options("red", "green")},
        {"picture": "2"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sample_that_is_corrected_is_another(module: MLLMModule, change: dict[str, Any]) -> None:
    before, after = about(module, SAMPLE), about(module, replace(SAMPLE, **change))

    assert {key for key in before if before[key] != after[key]} == {"contents"}


def test_the_same_samples_elsewhere_are_the_same(module: MLLMModule) -> None:
    moved = replace(SAMPLE, images=[Path("there/1.jpg")], boxes=tuple(SAMPLE.boxes))

    assert about(module, moved) == about(module, SAMPLE)


def test_the_order_of_samples_matters(module: MLLMModule) -> None:
    other = replace(SAMPLE, id="b")

    assert about(module, SAMPLE, other)["contents"] != about(module, other, SAMPLE)["contents"]
