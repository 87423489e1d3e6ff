"""The card of an export parses without a network, and says what is known and nothing else."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.card_facts import CardFacts, gather_card_facts
from lightning_mllm.models.freeze import Lora
from lightning_mllm.models.freeze_report import FreezeReport
from lightning_mllm.models.model_card import make_model_card
from lightning_mllm.models.optimisation.schedule import (
    LearningRates,
    PartSchedule,
    PartSchedules,
    Schedule,
)
from lightning_mllm.models.source import Source
from tests.models.conftest import export_from

REPORT = FreezeReport(
    policy="ProjectorOnly()",
    parameters={part: 1000 if part in (Part.VISION, Part.PROJECTOR) else 0 for part in Part},
    trainable={part: 1000 if part is Part.PROJECTOR else 0 for part in Part},
    trainable_names=("projector.weight",),
    idle=0,
)
ASKED = {"asked": "Which?", "template": "Which?"}


def _card(tmp_path: Path, checkpoint: str, facts: CardFacts, **options: Any) -> Any:
    """Write a card, and read it as the hub's library does."""
    card = make_model_card(Source(checkpoint, **options), facts, tmp_path, "my-llava")
    file = tmp_path / "written.md"
    file.write_text(str(card), encoding="utf-8")
    return ModelCard.load(file)


def test_a_card_names_its_base_on_the_hub_and_how_it_is_opened(tmp_path: Path) -> None:
    card = _card(tmp_path, "llava-hf/llava-1.5-7b-hf", CardFacts(REPORT, 5), revision="v2")

    assert card.data.to_dict() == {
        "base_model": "llava-hf/llava-1.5-7b-hf",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["lightning-mllm", "ProjectorOnly"],
    }
    for said in ("(revision `v2`)", 'from_pretrained("my-llava")', "--model.checkpoint my-llava"):
        assert said in card.text


def test_a_card_of_a_local_base_tells_no_path_and_states_its_licence(tmp_path: Path) -> None:
    base = tmp_path / "secret" / "base"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n")

    card = _card(tmp_path, str(base), CardFacts(REPORT, 5))

    assert card.data.license == "apache-2.0"
    assert "base_model" not in card.data.to_dict()
    assert "trained from the checkpoint `base` with" in card.text and "secret" not in card.content


@pytest.mark.parametrize("text", ["---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_a_broken_card_of_the_base_is_said_and_ends_no_export(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "README.md").write_text(text)

    with caplog.at_level(logging.WARNING):
        card = _card(tmp_path, str(tmp_path), CardFacts(REPORT, 5))

    assert "license" not in card.data.to_dict()
    assert "says nothing of the licence" in caplog.text


def test_a_card_says_what_the_checkpoint_and_its_run_know(tmp_path: Path) -> None:
    parts = PartSchedules(projector=PartSchedule(decay="constant"))
    record = {
        "steps": 320,
        "schedule": asdict(Schedule(LearningRates(projector=3e-3), 0.03, "cosine", 320, parts)),
        "inputs": {
            **ASKED,
            "data": {"class": "Digits", "samples": {"val": 360, "train": 1078}, "classes": 10},
        },
    }
    score = {"n": 359, "accuracy": 0.9472, "accuracy_interval_95": [0.919, 0.966]}
    for stage, n in (("zero_shot-step0", 358), ("test-step320", 359), ("test-step160", 357)):
        folder = tmp_path / "evaluation" / stage
        folder.mkdir(parents=True)
        content = {"dtype": "float32", "scorers": {"likelihood": {**score, "n": n}}}
        (folder / "scores.json").write_text(json.dumps(content))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"

    facts = gather_card_facts(REPORT, record, checkpoint, geometry="pad", subnetwork=None)
    text = _card(tmp_path, "org/base", facts).text

    for said in (
        "Freeze policy `ProjectorOnly()`, 320 optimiser steps",
        "| projector | 1,000 | 1,000 |",
        "Peak learning rates: projector 0.003; warm-up over 3% of the steps, then cosine; "
        "projector: decay constant.",
        "`Digits`, samples: 1,078 train, 360 val, 10 classes.",
        "| test, before training | likelihood | 358 | 0.947 [0.919, 0.966] |  |",
        "| test | likelihood | 359 | 0.947 [0.919, 0.966] |  |",
        "evaluated in float32",
        "by the geometry `pad`",
    ):
        assert said in text
    assert "357" not in text  # the scores of other weights


def test_a_card_of_a_part_of_the_model_has_no_scores_of_the_whole(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation" / "test-step3"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"scorers": {"a": {"n": 1, "accuracy": 0.5}}}))
    record = {"steps": 3, "inputs": {"asked": "USER: Which?", "template": "Which?"}, "edited": True}
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"

    facts = gather_card_facts(REPORT, record, checkpoint, geometry=None, subnetwork="x/alpha")

    assert not facts.scores
    text = _card(tmp_path, "org/base", facts).text
    for said in ("sub-network `alpha`", "does not write the prompt", "computations of the model"):
        assert said in text


def test_a_card_of_an_untrained_model_claims_no_training(tmp_path: Path) -> None:
    card = _card(tmp_path, "org/base", CardFacts(REPORT, 0))

    assert card.data.tags == ["lightning-mllm"]
    assert "trained from" not in card.text and "ProjectorOnly" not in card.text


def test_a_card_says_where_weights_are_that_an_adapter_lacks(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with_tower = {part: int(part in (Part.VISION, Part.LLM_LORA)) for part in Part}
    alone = {part: int(part in (Part.PROJECTOR, Part.LLM_LORA)) for part in Part}

    texts = []
    for trainable in (with_tower, alone):
        facts = CardFacts(replace(REPORT, trainable=trainable), 5)
        texts.append(_card(tmp_path, "org/base", facts).text)

    assert "another model than this one: weights of the vision tower were trained" in texts[0]
    assert "another model" not in texts[1]


def test_a_short_warm_up_is_not_rounded_away(tmp_path: Path) -> None:
    schedule = asdict(Schedule(LearningRates(), 0.004, "cosine", 320))

    text = _card(tmp_path, "org/base", CardFacts(REPORT, 320, schedule)).text

    assert "warm-up over 0.4% of the steps" in text


def test_every_export_has_a_card(tiny_llava: str, tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    Lora(rank=2).apply(backbone)

    export_from(tiny_llava, backbone, tmp_path / "out")

    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.text.strip().startswith("# out")
    assert "`adapter/`" in card.text and "`projector.safetensors`" in card.text
    assert str(tmp_path) not in card.content and tiny_llava not in card.content
