"""Export a trained model: a complete Hugging Face folder, the projector alone, a PEFT adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoProcessor

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import Source
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.checkpoint import save_projector
from lightning_mllm.models.lora import has_lora, merge_lora, save_adapter


def export(
    backbone: Backbone,
    output: Path,
    *,
    source: Source,
    dtype: torch.dtype,
) -> list[Path]:
    """Write the model, its processor, `projector.safetensors` and, with LoRA, `adapter/`.

    `AutoModelForImageTextToText.from_pretrained(output)` opens the folder, with adapters merged into the weights. The
    adapter is for `PeftModel.from_pretrained(base_model, output / "adapter")`; where the projection was trained beside
    it, load `projector.safetensors` as well.

    Args:
        backbone: The trained model; its adapters are merged into the weights.
        output: Folder to make; it must not exist, or be empty.
        source: Checkpoint that the training started from, and whose processor is copied.
        dtype: In which the weights are written.

    Returns:
        What was written: the folder and the files in it that stand for themselves.

    Raises:
        ConfigError: The folder has something in it.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty, and nothing is overwritten. Choose another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    processor = AutoProcessor.from_pretrained(
        source.checkpoint, revision=source.revision, trust_remote_code=source.trust_remote_code
    )
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        written = [output, output / "projector.safetensors"]
        save_projector(backbone, folder / "projector.safetensors", dtype)
        model = backbone.model
        if has_lora(model):
            save_adapter(model, source.checkpoint, folder / "adapter")
            written.append(output / "adapter")
            merge_lora(model)
        model.to(dtype)  # type: ignore[arg-type]  # its signature lost in a decorator
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if output.exists():
            output.rmdir()
        folder.replace(output)
    return written
