"""A model type of the user's own is trained after one call, without a change to the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lightning_mllm.data import Digits
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.families import FAMILIES, Family, register_family
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.freeze import ProjectorOnly
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.trainer import Trainer


class OwnConfig(LlavaConfig):
    model_type = "own_mllm"


class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig


@pytest.fixture
def own_checkpoint(tiny_llava: str, tmp_path: Path) -> Iterator[str]:
    """A checkpoint of a type that transformers does not know, registered by its author's code."""
    AutoConfig.register("own_mllm", OwnConfig, exist_ok=True)
    AutoModelForImageTextToText.register(OwnConfig, OwnModel, exist_ok=True)
    AutoProcessor.register(OwnConfig, LlavaProcessor, exist_ok=True)
    folder = tmp_path / "own"
    shutil.copytree(tiny_llava, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    options = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    OwnModel(OwnConfig(**{**options, "model_type": "own_mllm"})).save_pretrained(folder)
    yield str(folder)
    FAMILIES.pop("own_mllm", None)


def test_a_registered_family_trains_its_projector(own_checkpoint: str, tmp_path: Path) -> None:
    register_family("own_mllm", Family(grid="fixed", native=False))
    module = MLLMModule(own_checkpoint, policy=ProjectorOnly())
    module.configure_model()
    before = {name: each.detach().clone() for name, each in module.backbone.parameters()}
    trainer = Trainer(
        default_root_dir=tmp_path,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        limit_val_batches=1,
        max_steps=2,  # the first is the warm-up's, at rate 0
    )

    trainer.fit(module, datamodule=Digits(checkpoint=own_checkpoint, batch_size=4))

    weights = module.backbone.parameters()
    moved = {name for name, each in weights if not torch.equal(each, before[name])}
    assert isinstance(module.backbone.model, OwnModel)
    assert moved == set(module.freeze_report.trainable_names)
    assert all(name.startswith("model.multi_modal_projector.") for name in moved)


def test_a_family_that_is_not_registered_is_refused(own_checkpoint: str) -> None:
    with pytest.raises(CheckpointError, match=r"'own_mllm'"):
        Backbone.from_pretrained(own_checkpoint)


def test_a_projector_that_the_model_does_not_run_is_refused(own_checkpoint: str) -> None:
    register_family("own_mllm", Family(projector=("lm_head.",)))

    with pytest.raises(CheckpointError, match=r"does not run lm_head, .* as the projector"):
        ProjectorOnly().apply(Backbone.from_pretrained(own_checkpoint))


@pytest.mark.parametrize(
    ("model_type", "family"),
    [("", Family()), ("own_mllm", Family(vision=())), ("own_mllm", Family(projector=("",)))],
)
def test_a_family_without_a_name_or_a_part_is_refused(model_type: str, family: Family) -> None:
    with pytest.raises(ConfigError, match="lacks its model_type, or the name of a tower"):
        register_family(model_type, family)


def test_a_family_that_is_replaced_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "own_mllm", Family())

    register_family("own_mllm", Family(grid="fixed"))

    assert caplog.messages == ["The family of model type 'own_mllm' is replaced in this process."]
    assert FAMILIES["own_mllm"].grid == "fixed"
