from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.adapted import Source
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.checkpoint import load_projector, save_projector
from lightning_mllm.models.export import export
from lightning_mllm.models.freeze import Everything, FreezePolicy, Lora, ProjectorOnly
from lightning_mllm.types import MultimodalBatch
from tests.conftest import TinyBuilder
from tests.models.conftest import batch_of, logits, trained


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

    export(backbone, tmp_path / "out", source=Source(checkpoint), dtype=torch.float32)

    assert torch.equal(_logits(_open(tmp_path / "out"), batch), expected)
    original, exported = (AutoProcessor.from_pretrained(path) for path in (checkpoint, tmp_path / "out"))
    assert exported.chat_template == original.chat_template
    assert exported.tokenizer.get_vocab() == original.tokenizer.get_vocab()


def test_an_export_merges_adapters_and_keeps_them_for_peft(tiny_llava: str, tmp_path: Path) -> None:
    backbone, batch = trained(tiny_llava, Lora(rank=2, target="both")), batch_of(tiny_llava)
    expected = logits(backbone, batch)

    written = export(backbone, tmp_path / "out", source=Source(tiny_llava), dtype=torch.float32)

    assert tmp_path / "out" / "adapter" in written
    merged = _logits(_open(tmp_path / "out"), batch)
    adapted = _logits(
        PeftModel.from_pretrained(_open(tiny_llava), tmp_path / "out" / "adapter").get_base_model(), batch
    )
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapted, expected, rtol=1e-5, atol=1e-5)


def test_an_exported_projector_moves_into_another_model(tiny_llava: str, tmp_path: Path) -> None:
    moved = trained(tiny_llava, ProjectorOnly())
    save_projector(moved, tmp_path / "projector.safetensors", torch.float32)
    other = Backbone.from_pretrained(tiny_llava)

    load_projector(other, tmp_path / "projector.safetensors")

    batch = batch_of(tiny_llava)
    assert torch.equal(logits(other, batch), logits(moved, batch))


def test_a_projector_file_holds_the_projection_in_the_asked_dtype(tiny_llava_next: str, tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_llava_next)
    path = tmp_path / "projector.safetensors"

    save_projector(backbone, path, torch.bfloat16)

    values = sum(parameter.numel() for _, parameter in backbone.parameters(Part.PROJECTOR))
    assert 2 * values < path.stat().st_size < 2 * values + 1024


def test_a_projector_of_another_shape_is_refused(tiny_llava: str, tiny_llava_next: str, tmp_path: Path) -> None:
    save_projector(Backbone.from_pretrained(tiny_llava_next), tmp_path / "p.safetensors", torch.float32)

    with pytest.raises(CheckpointError, match=r"p\.safetensors does not fit the model"):
        load_projector(Backbone.from_pretrained(tiny_llava), tmp_path / "p.safetensors")


def test_a_missing_or_damaged_projector_file_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 20)

    with pytest.raises(CheckpointError, match="There is no projector file"):
        load_projector(backbone, tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        load_projector(backbone, tmp_path / "damaged.safetensors")


def test_an_export_overwrites_nothing(tiny_llava: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(ConfigError, match="is not empty"):
        export(Backbone.from_pretrained(tiny_llava), tmp_path, source=Source(tiny_llava), dtype=torch.float32)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
