"""A model that gives no numbers has no answers: the largest of NaN would be the first class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_mllm.errors import NotFiniteError
from lightning_mllm.evaluation import ExactMatch, Generation, Likelihood
from lightning_mllm.evaluation.finite import check_finite
from tests.evaluation.conftest import Scene


@pytest.fixture
def broken(llava: Scene) -> Scene:
    """The second of three pictures is none."""
    first, second, third = llava.batch.images
    noise = {"pixel_values": torch.full_like(second["pixel_values"], math.nan)}
    return replace(
        llava, batch=replace(llava.batch, images=(first, noise, third), kinds=("a", "b", "a"))
    )


ASKERS: dict[str, Callable[[Scene], Any]] = {
    "likelihood": lambda scene: Likelihood().predict(
        scene.model, scene.tokenizer, scene.batch, scene.labels
    ),
    "generation": lambda scene: Generation().predict(
        scene.model, scene.tokenizer, scene.batch, scene.labels
    ),
    "sampling": lambda scene: Generation(temperature=1.0).predict(
        scene.model, scene.tokenizer, scene.batch, scene.labels
    ),
    "exact match": lambda scene: ExactMatch().evaluate(scene.model, scene.tokenizer, scene.batch),
}


@pytest.mark.parametrize("ask", ASKERS.values(), ids=ASKERS.keys())
def test_a_model_without_numbers_is_no_classifier(
    broken: Scene, ask: Callable[[Scene], Any]
) -> None:
    named = repr(broken.batch.sample_ids[1])

    with pytest.raises(
        NotFiniteError, match=rf"are NaN or infinite for 1 of 3 samples, first for {named}"
    ):
        ask(broken)

    assert ask(replace(broken, batch=broken.batch.take([0, 2])))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_any_number_of_a_sample_that_is_not_finite_counts(number: float) -> None:
    numbers = torch.zeros(3, 2, 2)
    check_finite(numbers, "abc", "They")
    numbers[2, 1, 0] = number

    with pytest.raises(
        NotFiniteError, match=r"They are NaN or infinite for 1 of 3 samples, first for 'c'"
    ):
        check_finite(numbers, "abc", "They")


def test_the_way_out_is_the_callers_or_another_checkpoint_or_dtype() -> None:
    numbers = torch.tensor([math.nan])

    with pytest.raises(
        NotFiniteError, match=r"use an earlier checkpoint, or model\.dtype bfloat16 or float32\.$"
    ):
        check_finite(numbers, "a", "They")
    with pytest.raises(NotFiniteError, match=r"its dtype overflows: wait\.$"):
        check_finite(numbers, "a", "They", way_out="wait")
