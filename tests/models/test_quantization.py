"""A quantised LLM is the plain model but for its linear layers, and says so wherever it counts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from lightning_mllm.analysis.subnetwork.matrices import matrices
from lightning_mllm.callbacks.freeze_audit import freeze_checksums
from lightning_mllm.errors import ConfigError
from lightning_mllm.models import freeze
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.quantization import BYTES_PER_WEIGHT, Quantize, stored_weights
from lightning_mllm.models.quantizing import check_quantize_option
from lightning_mllm.models.source import Source
from lightning_mllm.models.tiny import TinyFamily, TinySize, build_tiny_checkpoint
from tests.conftest import FamilyBuilder
from tests.models.conftest import logits
from tests.support.tiny_families import open_backbone, unequal_pictures

KINDS: tuple[Quantize, ...] = get_args(Quantize)
PROJECTOR = freeze.ProjectorOnly()


def each_after_the_first_is_slow(names: Iterable[str]) -> list[Any]:
    first, *others = names
    return [first, *(pytest.param(each, marks=pytest.mark.slow) for each in others)]


def load(
    checkpoint: str,
    quantize: Quantize | None = "nf4",
    policy: freeze.FreezePolicy = PROJECTOR,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> AdaptedModel:
    return AdaptedModel.load(Source(checkpoint), policy, dtype=dtype, quantize=quantize, **options)


# ---- of a plain checkpoint -----------------------------------------------------------------------


@pytest.mark.parametrize("family", each_after_the_first_is_slow(get_args(TinyFamily)))
def test_all_but_the_llms_linear_layers_keep_their_bits_and_all_that_is_trained_learns(
    tiny_family: FamilyBuilder, family: str
) -> None:
    checkpoint, dtype = tiny_family(family), torch.bfloat16
    policy = freeze.Combined([freeze.ProjectorAndVision(), freeze.Lora(rank=2)])
    plain = open_backbone(checkpoint, dtype=dtype)
    attention: Any = plain.model.config._attn_implementation
    expected = AdaptedModel(plain, policy, dtype)

    for kind in KINDS:
        adapted = load(checkpoint, kind, policy, dtype, attention=attention)
        backbone = adapted.backbone
        quantized = set(stored_weights(backbone.model))
        own = dict(backbone.parameters())
        assert {backbone.part_of(name) for name in quantized} == {Part.LLM}
        for name, parameter in plain.parameters():
            if name in quantized:
                assert not own[name].is_floating_point()
            elif ".lora_" not in name:
                assert own[name].dtype == parameter.dtype, name
                assert torch.equal(own[name], parameter), name
        frozen = freeze_checksums(backbone.model)
        adapted.enable_gradient_checkpointing()
        adapted.set_train_modes()
        adapted.loss(unequal_pictures(checkpoint)).backward()
        assert all(each.grad is not None for each in own.values() if each.requires_grad)
        backbone.model.eval()
        with torch.no_grad():
            assert adapted.loss(unequal_pictures(checkpoint)).isfinite()
        assert freeze_checksums(backbone.model) == frozen
        assert adapted.report == expected.report
        assert backbone.fingerprint == plain.fingerprint
        assert backbone.quantized == kind


@pytest.mark.parametrize("kind", each_after_the_first_is_slow(KINDS))
def test_weights_take_the_bytes_that_are_stated(tmp_path: Path, kind: Quantize) -> None:
    size = TinySize(text_width=512, text_layers=1)
    backbone = load(str(build_tiny_checkpoint(tmp_path / "wide", size=size)), kind).backbone
    stored = stored_weights(backbone.model)

    held = 0
    for name in stored:
        weight: Any = backbone.model.get_parameter(name)
        held += weight.numel()
        if (state := getattr(weight, "quant_state", None)) is not None:
            held += state.absmax.numel() + 4 * state.state2.absmax.numel()

    stated = BYTES_PER_WEIGHT[kind] * sum(each.shape.numel() for each in stored.values())
    assert held == pytest.approx(stated, rel=1e-3)


def test_evaluating_gives_what_training_gives(tiny_llava: str) -> None:
    adapted, batch = load(tiny_llava), unequal_pictures(tiny_llava)
    adapted.set_train_modes()
    training = adapted.loss(batch)
    adapted.backbone.model.eval()

    with torch.inference_mode():
        evaluating = adapted.loss(batch)

    torch.testing.assert_close(evaluating, training)


@pytest.mark.parametrize("kind", each_after_the_first_is_slow(KINDS))
def test_a_quantised_model_is_near_the_plain_one_and_not_it(
    tiny_llava: str, kind: Quantize
) -> None:
    batch = unequal_pictures(tiny_llava)
    plain = logits(Backbone.from_pretrained(tiny_llava), batch)

    difference = logits(load(tiny_llava, kind).backbone, batch) - plain

    assert 0 < difference.std() / plain.std() < (0.2 if kind == "nf4" else 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_plain_and_quantised_models_have_one_fingerprint_in_every_dtype(
    tiny_llava: str, dtype: torch.dtype
) -> None:
    plain = Backbone.from_pretrained(tiny_llava, dtype=dtype)

    assert load(tiny_llava, "int8", dtype=dtype).backbone.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "policy",
    [
        freeze.ProjectorAndLLM(),
        freeze.LLMOnly(),
        freeze.Everything(),
        freeze.LastLayers(1),
        freeze.ByPattern([r"layers\.0\.mlp"]),
        freeze.Combined([freeze.Lora(rank=1), freeze.LastLayers(1)]),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_a_policy_that_trains_what_is_quantised_is_refused_before_anything_is_quantised(
    tiny_llava: str, policy: freeze.FreezePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsandbytes.nn.Linear4bit.__init__", None)

    with pytest.raises(ConfigError, match=r"trains \d+ tensors of layers that are quantised"):
        load(tiny_llava, policy=policy)


@pytest.mark.slow
def test_embeddings_head_and_norms_can_be_trained_beside_quantised_layers(tiny_llava: str) -> None:
    policy = freeze.ByPattern(["lm_head", "embed_tokens", "language_model.*norm"])

    assert load(tiny_llava, policy=policy).report.trainable[Part.LLM] > 0


def test_adapters_start_as_they_do_on_the_plain_model(tiny_llava: str) -> None:
    states = []
    for kind in (None, "nf4"):
        torch.manual_seed(5)
        states.append(load(tiny_llava, kind, freeze.Lora(rank=2)).trained_state())

    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_options_that_were_never_tried_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="int8 can't be sharded"):
        check_quantize_option("int8", sharded=True, compiled=False, placed=False)
    with pytest.raises(ConfigError, match=r"nf4 .* with model\.compile"):
        check_quantize_option("nf4", sharded=False, compiled=True, placed=False)
    with pytest.raises(ConfigError, match=r"nf4 .* with model\.device_map"):
        check_quantize_option("nf4", sharded=False, compiled=False, placed=True)
    check_quantize_option(None, sharded=True, compiled=True, placed=True)


def test_without_bitsandbytes_one_sentence_says_how_to_get_it(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lightning_mllm.models.quantization.is_bitsandbytes_available", lambda: False
    )

    with pytest.raises(ConfigError, match=r"nf4 needs .*pip install 'lightning-mllm\[quantize\]'"):
        load(tiny_llava)


@pytest.mark.parametrize("kind", each_after_the_first_is_slow(KINDS))
def test_which_weights_a_task_uses_is_not_asked_of_a_quantised_model(
    tiny_llava: str, kind: Quantize
) -> None:
    with pytest.raises(ConfigError, match="quantised, and which of them are kept is not defined"):
        matrices(load(tiny_llava, kind).backbone)


# ---- of a checkpoint that is quantised already ---------------------------------------------------


def save_quantized(plain: str, folder: Path, **options: Any) -> str:
    """Write a checkpoint as transformers and bitsandbytes do."""
    shutil.copytree(plain, folder)
    (folder / "model.safetensors").unlink()
    config = BitsAndBytesConfig(**options)
    model = AutoModelForImageTextToText.from_pretrained(
        plain, quantization_config=config, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    return str(folder)


OPTIONS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
}
LLM_ALONE = {
    "llm_int8_skip_modules": ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
}


@pytest.mark.parametrize("kind", each_after_the_first_is_slow(OPTIONS))
def test_a_quantised_checkpoint_is_opened_trained_and_turned_into_numbers(
    tiny_llava: str, tmp_path: Path, kind: str
) -> None:
    checkpoint = save_quantized(tiny_llava, tmp_path / kind, **OPTIONS[kind], **LLM_ALONE)
    policy, batch = freeze.Lora(rank=2, projector=True), unequal_pictures(tiny_llava)
    adapted = load(checkpoint, None, policy)
    with torch.no_grad():
        for _, parameter in adapted.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand_like(parameter), alpha=0.05)

    plain = adapted.unquantized()

    assert adapted.backbone.quantized == kind
    assert plain.backbone.quantized is None
    assert plain.backbone.fingerprint == adapted.backbone.fingerprint
    assert adapted.backbone.fingerprint != Backbone.from_pretrained(tiny_llava).fingerprint
    assert plain.report == adapted.report
    assert not any(type(each).__module__.startswith("bitsandbytes") for each in _modules(plain))
    found, expected = logits(plain.backbone, batch), logits(adapted.backbone, batch)
    assert (found - expected).std() < (0.02 if kind == "int8" else 1e-5) * expected.std()


def _modules(adapted: AdaptedModel) -> list[nn.Module]:
    return list(adapted.backbone.model.modules())


@pytest.mark.slow
def test_a_checkpoint_whose_tower_and_projector_are_quantised_is_measured_but_not_trained(
    tiny_llava: str, tmp_path: Path
) -> None:
    checkpoint = save_quantized(tiny_llava, tmp_path / "all", **OPTIONS["nf4"])

    adapted = load(checkpoint, None, freeze.ZeroShot())

    expected = freeze.ZeroShot().apply(Backbone.from_pretrained(tiny_llava))
    assert adapted.report.parameters == expected.parameters
    assert adapted.loss(unequal_pictures(tiny_llava)).isfinite()
    with pytest.raises(ConfigError, match=r"trains \d tensors of layers that are quantised"):
        load(checkpoint, None)
    with pytest.raises(ConfigError, match="quantised already \\(nf4\\)"):
        load(checkpoint, "nf4", freeze.ZeroShot())
