from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data.images.portable import portable_processor
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.checkpoint import load_projector, save_projector
from lightning_mllm.models.export import export
from lightning_mllm.models.freeze import Everything, FreezePolicy, Lora, ProjectorOnly, ZeroShot
from lightning_mllm.models.source import Source
from lightning_mllm.models.tiny import TinyFamily
from tests.conftest import TinyBuilder
from tests.models.conftest import batch_of, export_from, logits, move, trained


def _open(path: Path | str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(path)
    return model


@torch.no_grad()
def _logits(model: nn.Module, batch: MultimodalBatch) -> torch.Tensor:
    output: torch.Tensor = model(**batch.model_inputs()).logits
    return output


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("policy", [ProjectorOnly(), Everything()], ids=str)
def test_from_pretrained_opens_an_export_with_equal_logits(
    tiny_checkpoint: TinyBuilder, tmp_path: Path, family: str, policy: FreezePolicy
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")  # type: ignore[arg-type]
    backbone, batch = trained(checkpoint, policy), batch_of(checkpoint)
    expected = logits(backbone, batch)

    export_from(checkpoint, backbone, tmp_path / "out", dtype=torch.float32)

    assert torch.equal(_logits(_open(tmp_path / "out"), batch), expected)
    original, exported = (
        AutoProcessor.from_pretrained(path) for path in (checkpoint, tmp_path / "out")
    )
    assert exported.chat_template == original.chat_template
    assert exported.tokenizer.get_vocab() == original.tokenizer.get_vocab()


def test_an_export_merges_adapters_and_keeps_them_for_peft(tiny_llava: str, tmp_path: Path) -> None:
    backbone, batch = trained(tiny_llava, Lora(rank=2, target="both")), batch_of(tiny_llava)
    expected = logits(backbone, batch)

    written = export_from(tiny_llava, backbone, tmp_path / "out", dtype=torch.float32)

    assert tmp_path / "out" / "adapter" in written
    merged = _logits(_open(tmp_path / "out"), batch)
    adapted = _logits(
        PeftModel.from_pretrained(_open(tiny_llava), tmp_path / "out" / "adapter").get_base_model(),
        batch,
    )
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapted, expected, rtol=1e-5, atol=1e-5)


def _adapter(folder: Path, base: str) -> PeftModel:
    """The adapter of an export, opened alone on the checkpoint that it was trained on."""
    adapter: PeftModel = PeftModel.from_pretrained(_open(base), folder / "adapter")
    return adapter


@pytest.mark.parametrize(
    ("family", "given"), [("llava", False), ("llava_next", False), ("llava", True)]
)
def test_an_adapter_alone_is_the_model_with_its_projector(
    tiny_checkpoint: TinyBuilder, tmp_path: Path, family: TinyFamily, given: bool
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")
    backbone, batch = trained(checkpoint, Lora(rank=2, projector=True)), batch_of(checkpoint)
    if given:
        save_projector(
            trained(checkpoint, ProjectorOnly()), tmp_path / "p.safetensors", torch.float32
        )
        backbone = Backbone.from_pretrained(checkpoint)
        load_projector(backbone, tmp_path / "p.safetensors")
        move(backbone, Lora(rank=2))
    expected = logits(backbone, batch)

    export_from(checkpoint, backbone, tmp_path / "out")

    opened = _adapter(tmp_path / "out", checkpoint)
    torch.testing.assert_close(_logits(opened, batch), expected, rtol=1e-5, atol=1e-5)
    merged = opened.merge_and_unload()
    torch.testing.assert_close(_logits(merged, batch), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_leaves_the_projector_of_its_base_alone(tiny_llava: str, tmp_path: Path) -> None:
    export_from(tiny_llava, trained(tiny_llava, Lora(rank=2)), tmp_path / "out")

    assert not any(
        "modules_to_save" in name
        for name, _ in _adapter(tmp_path / "out", tiny_llava).named_modules()
    )
    with safe_open(tmp_path / "out" / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118 - not a mapping


def test_an_adapter_names_the_revision_of_its_base(tiny_llava: str, tmp_path: Path) -> None:
    source = Source(tiny_llava, revision="v1.2")

    export(
        trained(tiny_llava, Lora(rank=2)),
        tmp_path / "out",
        source=source,
        processor=portable_processor(tiny_llava),
    )

    config = _adapter(tmp_path / "out", tiny_llava).peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == (tiny_llava, "v1.2")


@pytest.mark.parametrize(
    ("policy", "name", "value"),
    [
        (ZeroShot(), "model.vision_tower.embeddings.patch_embedding.weight", torch.nan),
        (ProjectorOnly(), "model.multi_modal_projector.linear_1.bias", torch.inf),
        (
            Lora(rank=2),
            "model.language_model.layers.1.self_attn.q_proj.lora_B.default.weight",
            torch.nan,
        ),
    ],
)
def test_weights_that_are_not_finite_are_not_exported(
    tiny_llava: str, tmp_path: Path, policy: FreezePolicy, name: str, value: float
) -> None:
    backbone = trained(tiny_llava, policy)
    with torch.no_grad():
        backbone.model.get_parameter(name).view(-1)[1] = value

    with pytest.raises(
        CheckpointError, match=rf"weights '{name}' have 1 values that are not finite.*earlier ch"
    ):
        export_from(tiny_llava, backbone, tmp_path / "out")

    assert not list(tmp_path.iterdir())


def test_weights_that_a_dtype_cannot_hold_are_not_exported(tiny_llava: str, tmp_path: Path) -> None:
    backbone = trained(tiny_llava, ProjectorOnly())
    with torch.no_grad():
        backbone.model.get_parameter("model.multi_modal_projector.linear_1.bias")[3] = -70_000

    with pytest.raises(
        CheckpointError, match=r"linear_1\.bias' have values up to 70000, more than torch\.float16"
    ):
        export_from(tiny_llava, backbone, tmp_path / "out", dtype=torch.float16)
    export_from(tiny_llava, backbone, tmp_path / "out", dtype=torch.bfloat16)


def test_the_projector_is_the_bases_until_a_value_changes(tiny_llava_next: str) -> None:
    backbone = Backbone.from_pretrained(tiny_llava_next, dtype=torch.bfloat16)
    backbone.projector.float()  # the values stay
    assert backbone.has_base_projector

    with torch.no_grad():
        backbone.model.get_parameter("model.multi_modal_projector.linear_2.bias")[-1] += 1e-4

    assert not backbone.has_base_projector


def test_an_exported_projector_moves_into_another_model(tiny_llava: str, tmp_path: Path) -> None:
    moved = trained(tiny_llava, ProjectorOnly())
    save_projector(moved, tmp_path / "projector.safetensors", torch.float32)
    other = Backbone.from_pretrained(tiny_llava)

    load_projector(other, tmp_path / "projector.safetensors")

    batch = batch_of(tiny_llava)
    assert torch.equal(logits(other, batch), logits(moved, batch))


def test_a_projector_file_holds_the_projection_in_the_asked_dtype(
    tiny_llava_next: str, tmp_path: Path
) -> None:
    backbone = Backbone.from_pretrained(tiny_llava_next)
    path = tmp_path / "projector.safetensors"

    save_projector(backbone, path, torch.bfloat16)

    values = sum(parameter.numel() for _, parameter in backbone.parameters(Part.PROJECTOR))
    assert 2 * values < path.stat().st_size < 2 * values + 1024


def test_a_projector_of_another_shape_is_refused(
    tiny_llava: str, tiny_llava_next: str, tmp_path: Path
) -> None:
    save_projector(
        Backbone.from_pretrained(tiny_llava_next), tmp_path / "p.safetensors", torch.float32
    )

    with pytest.raises(CheckpointError, match=r"p\.safetensors does not fit the model"):
        load_projector(Backbone.from_pretrained(tiny_llava), tmp_path / "p.safetensors")


def test_a_missing_or_damaged_projector_file_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 20)

    with pytest.raises(CheckpointError, match="There is no projector file"):
        load_projector(backbone, tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        load_projector(backbone, tmp_path / "damaged.safetensors")


def test_an_export_overwrites_nothing(tiny_llava: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(ConfigError, match="is not empty"):
        export_from(tiny_llava, Backbone.from_pretrained(tiny_llava), tmp_path, dtype=torch.float32)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
