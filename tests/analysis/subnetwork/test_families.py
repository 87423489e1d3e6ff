"""Calibration of families whose positions have axes, and whose layers have more than matrices."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoTokenizer

from lightning_mllm.analysis.core.token_sets import TokenSets
from lightning_mllm.analysis.subnetwork.activated_weights import ActivatedWeights
from lightning_mllm.analysis.subnetwork.calibration import calibrate
from lightning_mllm.analysis.subnetwork.calibration_options import CalibrationOptions
from lightning_mllm.types import Segment
from tests.conftest import FamilyBuilder
from tests.support.family_questions import ask, load

OPTIONS = [
    CalibrationOptions("perceptual"),
    CalibrationOptions("textual", "full"),
    CalibrationOptions("both", sequential=False),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda each: each.tokens)
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "gemma3", "gemma4", "mistral3"])
def test_neither_padding_nor_the_composition_of_batches_matters(
    tiny_family: FamilyBuilder, name: str, options: CalibrationOptions
) -> None:
    checkpoint = tiny_family(name)
    backbone = load(checkpoint)
    left, right = (ask(checkpoint, side) for side in ("left", "right"))

    found = calibrate(backbone, [left], options=options)
    apart = calibrate(backbone, [right.take([row]) for row in range(3)], options=options)

    assert found.tokens == apart.tokens
    for matrix, squares in found.squares.items():
        torch.testing.assert_close(squares, apart.squares[matrix], rtol=1e-4, atol=1e-8)


def test_a_text_alone_is_numbered_as_if_there_were_no_image(tiny_family: FamilyBuilder) -> None:
    batch = ask(tiny_family("qwen2_vl"))

    shown, _ = CalibrationOptions("textual").cut(batch)

    count = shown.attention_mask.sum(1, keepdim=True)
    expected = torch.arange(shown.input_ids.shape[1]).minimum(count)
    assert torch.equal(shown.position_ids, expected.expand(3, -1, -1))


def test_an_image_alone_keeps_its_grid(tiny_family: FamilyBuilder) -> None:
    batch = ask(tiny_family("qwen2_vl"))

    shown, counted = CalibrationOptions("perceptual").cut(batch)

    own, whole = shown.position_ids[:, counted], batch.position_ids[:, batch.spans[Segment.IMAGE]]
    first = own[:, :1] - whole[:, :1]
    assert (first == 1 - batch.position_ids[:, batch.spans[Segment.IMAGE]][:, :1]).all()
    assert torch.equal(own - own[0], whole - whole[0])  # rows and columns, against time


def test_the_frame_of_an_image_is_neither_perceptual_nor_textual(
    tiny_family: FamilyBuilder,
) -> None:
    batch = ask(tiny_family("mistral3"))
    frame = batch.spans[Segment.IMAGE_FRAME]

    masks = TokenSets(before_image=True).of(batch)

    assert frame.any(1).all()
    assert torch.equal(batch.attention_mask.bool() & ~masks.any(1), frame)


def test_what_is_never_pruned_is_named(
    tiny_family: FamilyBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tiny_family("qwen3_vl_moe")
    backbone, analysis = load(checkpoint, dtype=torch.float32), ActivatedWeights(samples=9)
    analysis.prepare(AutoTokenizer.from_pretrained(checkpoint))

    with caplog.at_level(logging.WARNING):
        for row in range(2):
            analysis.update(backbone, ask(checkpoint).take([row]))

    assert caplog.text.count("mlp.experts.gate_up_proj") == 1
