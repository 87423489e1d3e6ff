"""A model that an analysis can say nothing about is refused by name, before it is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mllm.analysis import Alignment, Analysis, ComputationSkipping, InformationFlow
from lightning_mllm.analysis.core.refusal import refusal
from lightning_mllm.callbacks import RunAnalysis
from lightning_mllm.errors import ConfigError
from tests.conftest import FamilyBuilder
from tests.support.family_questions import ask, load
from tests.support.feature_callbacks import make_run
from tests.support.questions import tokenizer

REFUSED = pytest.mark.parametrize(
    ("name", "analysis"),
    [
        ("gemma3", Alignment(states=["residual", "SA"])),
        ("qwen3_5", InformationFlow(correct_only=False)),
        ("aya_vision", ComputationSkipping()),
    ],
    ids=lambda each: each if isinstance(each, str) else each.name,
)


def test_a_refusal_names_feature_family_reason_and_way_out(tiny_family: FamilyBuilder) -> None:
    backbone = load(tiny_family("qwen2_vl"), dtype=torch.float32)

    said = str(refusal(backbone, "Juggling", "its layers have no hands", "Use another family."))

    assert said == (
        "Juggling does not work with qwen2_vl: its layers have no hands. Use another family."
    )


@REFUSED
def test_the_model_is_not_run(tiny_family: FamilyBuilder, name: str, analysis: Analysis) -> None:
    checkpoint = tiny_family(name)
    backbone, batch = load(checkpoint, dtype=torch.float32), ask(checkpoint)
    calls: list[int] = []
    backbone.model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))
    analysis.prepare(tokenizer(checkpoint))

    with pytest.raises(ConfigError, match=rf"does not work with {name}: .*\. (Use|Ask) "):
        analysis.update(backbone, batch)

    assert not calls


def test_a_fit_is_not_begun(tiny_family: FamilyBuilder, tmp_path: Path) -> None:
    alignment = Alignment(states=["residual", "SA"])
    run = make_run(tiny_family("gemma3"), tmp_path, [RunAnalysis(alignment, before_training=False)])

    with pytest.raises(ConfigError, match="SA inside layers does not work with gemma3"):
        run.fit()

    assert not run.trainer.global_step
