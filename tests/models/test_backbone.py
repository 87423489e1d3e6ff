from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import CheckpointError
from lightning_mllm.families import FAMILIES, Family
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.freeze import Everything, ProjectorOnly
from lightning_mllm.models.hooks import hook_inputs
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.tiny import TinySize, build_tiny_checkpoint
from lightning_mllm.types import Segment
from tests.conftest import TinyBuilder
from tests.models.conftest import batch_of


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_the_parts_are_the_whole(tiny_checkpoint: TinyBuilder, family: str) -> None:
    backbone = Backbone.from_pretrained(tiny_checkpoint(family, "vicuna"))  # type: ignore[arg-type]

    names = {part: {name for name, _ in backbone.parameters(part)} for part in Part}

    assert sum(map(len, names.values())) == len(list(backbone.model.parameters()))
    assert names[Part.VISION] == {
        f"model.vision_tower.{name}" for name, _ in backbone.vision_tower.named_parameters()
    }
    assert {
        f"model.language_model.{name}" for name, _ in backbone.decoder.named_parameters()
    } < names[Part.LLM]
    assert "lm_head.weight" in names[Part.LLM]


@pytest.mark.parametrize("tap", [-1, -2, 1, [-2, 1]])
def test_idle_parameters_are_those_without_gradient(
    tiny_llava: str, tap: int | list[int], tmp_path: Path
) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    backbone.model.config.vision_feature_layer = tap
    if isinstance(tap, list):  # features of several layers are concatenated
        backbone.projector.linear_1 = torch.nn.Linear(32 * len(tap), 64)
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(True)

    answer_loss(backbone, batch_of(tiny_llava)).mean.backward()

    without = {
        name for name, parameter in backbone.parameters(Part.VISION) if parameter.grad is None
    }
    assert backbone.idle_parameters() == without


def test_the_fingerprint_knows_weights_not_dtypes(tiny_llava: str, tmp_path: Path) -> None:
    other = build_tiny_checkpoint(tmp_path / "other", seed=1)

    assert (
        Backbone.from_pretrained(tiny_llava).fingerprint
        == Backbone.from_pretrained(tiny_llava).fingerprint
    )
    assert (
        Backbone.from_pretrained(tiny_llava, dtype=torch.bfloat16).fingerprint
        == Backbone.from_pretrained(tiny_llava).fingerprint
    )
    assert (
        Backbone.from_pretrained(str(other)).fingerprint
        != Backbone.from_pretrained(tiny_llava).fingerprint
    )


def fed_to_the_llm(backbone: Backbone, batch: MultimodalBatch) -> Tensor:
    """What the full model hands its LLM at all image positions, (tokens, width)."""
    seen: list[Tensor] = []
    first = {0: decoder_layers(backbone)[0]}
    with hook_inputs(first, lambda _, hidden: seen.append(hidden)):
        backbone.model(**batch.model_inputs())
    return seen[0][batch.spans[Segment.IMAGE]]


def with_taps(checkpoint: str, tap: int | list[int], strategy: str = "default") -> Backbone:
    backbone = Backbone.from_pretrained(checkpoint)
    backbone.model.config.vision_feature_layer = tap
    backbone.model.config.vision_feature_select_strategy = strategy
    if isinstance(tap, list):  # features of several layers are concatenated
        backbone.projector.linear_1 = torch.nn.Linear(32 * len(tap), 64)
    return backbone


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("tap", [-1, -2, 1, [-2, 1]])
@torch.no_grad()
def test_encoded_images_are_what_the_full_model_feeds_its_llm(
    tiny_checkpoint: TinyBuilder, family: str, tap: int | list[int]
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")  # type: ignore[arg-type]
    backbone, batch = with_taps(checkpoint, tap), batch_of(checkpoint)
    projected: list[Tensor] = []
    projector = {"projector": backbone.projector}

    with hook_inputs(projector, lambda _, hidden: projected.append(hidden)):
        expected = fed_to_the_llm(backbone, batch)

    seen = backbone.vision_path.observe(batch.images)
    encoded = backbone.encode_images(batch.images)
    assert torch.equal(torch.cat([each.tokens for each in encoded]), expected)
    assert torch.equal(torch.cat([each.encoded.tokens for each in seen]), expected)
    assert torch.equal(torch.cat([each.projected_from for each in seen]), projected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("family", ["llava", "llava_next"])
@torch.no_grad()
def test_the_projector_alone_makes_the_same_of_kept_features(
    tiny_checkpoint: TinyBuilder, family: str, dtype: torch.dtype, autocast: bool
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")  # type: ignore[arg-type]
    backbone, batch = Backbone.from_pretrained(checkpoint, dtype=dtype), batch_of(checkpoint)
    path = backbone.vision_path

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = fed_to_the_llm(backbone, batch)
        kept = [states.tower.clone() for states in path.observe(batch.images)]
        inside = path.tower_layers[0].get_submodule("mlp")
        with inside.register_forward_hook(lambda *_: pytest.fail("The tower ran.")):
            found = path.replay(batch.images, kept)

    assert torch.equal(torch.cat([states.encoded.tokens for states in found]), expected)
    assert found[0].encoded.tokens.dtype == expected.dtype


@torch.no_grad()
def test_a_class_token_that_the_model_keeps_is_projected(tiny_llava: str) -> None:
    backbone, batch = with_taps(tiny_llava, -2, "full"), batch_of(tiny_llava, size=2)

    path = backbone.vision_path

    first, _ = path.observe(batch.images)

    token = path.class_token(first.tower)
    assert first.projected_from.shape == (1, 17, 32)
    assert token is not None
    assert torch.equal(token, first.projected_from[:, 0])
    assert path.class_token(first.tower[:, :, 1:]) is None


@torch.no_grad()
def test_views_that_only_fill_the_batch_are_left_out(tiny_llava_next: str) -> None:
    path = Backbone.from_pretrained(tiny_llava_next).vision_path
    wide = {"pixel_values": torch.randn(1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])}
    large = {"pixel_values": torch.randn(1, 5, 3, 28, 28), "image_sizes": torch.tensor([[56, 56]])}

    together = path.observe([wide, large])

    assert [states.tower.shape[1] for states in together] == [3, 5]
    for image, states in zip((wide, large), together, strict=True):
        torch.testing.assert_close(states.encoded.tokens, path.encode([image])[0].tokens)


def test_the_vision_fingerprint_is_of_the_tower_as_it_is_now(
    tiny_llava: str, tmp_path: Path
) -> None:
    def fresh(**options: Any) -> Backbone:
        return Backbone.from_pretrained(tiny_llava, **options)

    backbone = fresh()
    expected = backbone.vision_path.fingerprint()

    backbone.projector.linear_1.weight.data.zero_()  # type: ignore[operator,union-attr]
    assert backbone.vision_path.fingerprint() == expected
    for name, parameter in list(backbone.parameters(Part.VISION)):
        value = parameter.data.flatten()[-1].clone()
        parameter.data.flatten()[-1] = torch.nextafter(value, torch.tensor(torch.inf))
        assert backbone.vision_path.fingerprint() != expected, name
        parameter.data.flatten()[-1] = value
    assert backbone.vision_path.fingerprint() == expected
    others = [
        fresh(dtype=torch.bfloat16),
        fresh(attention="eager"),
        with_taps(tiny_llava, -1),
        Backbone.from_pretrained(str(build_tiny_checkpoint(tmp_path / "other", seed=1))),
    ]
    assert len({expected, *(other.vision_path.fingerprint() for other in others)}) == 5


def test_a_further_family_is_one_entry(
    tmp_path: Path, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VipLLaVA taps several vision layers and has another projector; its entry is the default."""
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
    monkeypatch.setitem(FAMILIES, "vipllava", Family())

    backbone = Backbone.from_pretrained(str(tmp_path))
    report = ProjectorOnly().apply(backbone)
    everything = Everything().apply(backbone)
    batch = batch_of(tiny_llava)
    answer_loss(backbone, batch).mean.backward()

    assert set(report.trainable_names) == {
        f"model.multi_modal_projector.{name}" for name, _ in backbone.projector.named_parameters()
    }
    assert all(
        backbone.model.get_parameter(name).grad is not None for name in everything.trainable_names
    )
    encoded = torch.cat([each.tokens for each in backbone.encode_images(batch.images)])
    assert torch.equal(encoded, fed_to_the_llm(backbone, batch))


def test_a_wrong_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # the variable is read at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="'no/such-model' is not a folder"):
        Backbone.from_pretrained("no/such-model")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        Backbone.from_pretrained(str(tmp_path))


def test_a_text_only_checkpoint_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
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

    with pytest.raises(
        CheckpointError, match=r"lacks 4 weights of a llava model.*first is .*multi_modal_projector"
    ):
        Backbone.from_pretrained(str(tmp_path / "partial"))


def test_a_tiny_checkpoint_is_reproducible(tmp_path: Path) -> None:
    size = TinySize(text_layers=1)
    state = torch.get_rng_state()

    first, second = (build_tiny_checkpoint(tmp_path / name, size=size) for name in "ab")

    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
