from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from lightning_mllm.errors import CheckpointError
from lightning_mllm.models import backbone as backbone_module
from lightning_mllm.models.backbone import Backbone, Family, Part
from lightning_mllm.models.freeze import Everything, ProjectorOnly
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from tests.conftest import TinyBuilder
from tests.models.conftest import batch_of


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_the_parts_are_the_whole(tiny_checkpoint: TinyBuilder, family: str) -> None:
    backbone = Backbone.from_pretrained(tiny_checkpoint(family, "vicuna"))  # type: ignore[arg-type]

    names = {part: {name for name, _ in backbone.parameters(part)} for part in Part}

    assert sum(map(len, names.values())) == len(list(backbone.model.parameters()))
    assert names[Part.VISION] == {f"model.vision_tower.{name}" for name, _ in backbone.vision_tower.named_parameters()}
    assert {f"model.language_model.{name}" for name, _ in backbone.decoder.named_parameters()} < names[Part.LLM]
    assert "lm_head.weight" in names[Part.LLM]


@pytest.mark.parametrize("tap", [-1, -2, 1, [-2, 1]])
def test_idle_parameters_are_those_without_gradient(tiny_llava: str, tap: int | list[int], tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    backbone.model.config.vision_feature_layer = tap
    if isinstance(tap, list):  # features of several layers are concatenated
        backbone.projector.linear_1 = torch.nn.Linear(32 * len(tap), 64)
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(True)

    answer_loss(backbone, batch_of(tiny_llava)).mean.backward()

    without = {name for name, parameter in backbone.parameters(Part.VISION) if parameter.grad is None}
    assert backbone.idle_parameters() == without


def test_the_fingerprint_knows_weights_not_dtypes(tiny_llava: str, tmp_path: Path) -> None:
    other = build_tiny_checkpoint(tmp_path / "other", seed=1)

    assert Backbone.from_pretrained(tiny_llava).fingerprint == Backbone.from_pretrained(tiny_llava).fingerprint
    assert (
        Backbone.from_pretrained(tiny_llava, dtype=torch.bfloat16).fingerprint
        == Backbone.from_pretrained(tiny_llava).fingerprint
    )
    assert Backbone.from_pretrained(str(other)).fingerprint != Backbone.from_pretrained(tiny_llava).fingerprint


def test_a_further_family_is_one_entry(tmp_path: Path, tiny_llava: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """VipLLaVA taps several vision layers and has another projector; its entry is the default one."""
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    base = Backbone.from_pretrained(tiny_llava).model.config
    config = VipLlavaConfig(
        vision_config=base.vision_config.to_dict(),
        text_config=base.text_config.to_dict(),
        image_token_index=base.image_token_id,
        vision_feature_layer=[-2, 1],
    )
    VipLlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    for file in Path(tiny_llava).glob("*token*"):
        shutil.copy(file, tmp_path)
    monkeypatch.setitem(backbone_module.FAMILIES, "vipllava", Family())

    backbone = Backbone.from_pretrained(str(tmp_path))
    report = ProjectorOnly().apply(backbone)
    everything = Everything().apply(backbone)
    answer_loss(backbone, batch_of(tiny_llava)).mean.backward()

    assert set(report.trainable_names) == {
        f"model.multi_modal_projector.{name}" for name, _ in backbone.projector.named_parameters()
    }
    assert all(backbone.model.get_parameter(name).grad is not None for name in everything.trainable_names)


def test_a_wrong_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable is read at import
    with pytest.raises(CheckpointError, match="'no/such-model' can't be opened"):
        Backbone.from_pretrained("no/such-model")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        Backbone.from_pretrained(str(tmp_path))


def test_a_text_only_checkpoint_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match="a text-only model"):
        Backbone.from_pretrained(str(tmp_path))


def test_a_checkpoint_without_weights_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    shutil.copy(Path(tiny_llava) / "config.json", tmp_path)

    with pytest.raises(CheckpointError, match="weights of checkpoint"):
        Backbone.from_pretrained(str(tmp_path))


def test_a_checkpoint_that_lacks_weights_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_llava, tmp_path / "partial")
    weights = load_file(tmp_path / "partial" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "multi_modal_projector" not in name}
    save_file(kept, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"lacks 4 weights of a llava model.*first is .*multi_modal_projector"):
        Backbone.from_pretrained(str(tmp_path / "partial"))


def test_a_tiny_checkpoint_is_reproducible(tmp_path: Path) -> None:
    size = TinySize(text_layers=1)
    state = torch.get_rng_state()

    first, second = (build_tiny_checkpoint(tmp_path / name, size=size) for name in "ab")

    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
