"""Export a trained model: a complete Hugging Face folder, the projector alone, a PEFT adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoProcessor

from lightning_mllm.errors import CheckpointError, ConfigError
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
        CheckpointError: The disk is full or can't be written; nothing is left behind.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty, and nothing is overwritten. Choose another --output.")
    output.parent.mkdir(parents=True, exist_ok=True)
    processor = AutoProcessor.from_pretrained(
        source.checkpoint, revision=source.revision, trust_remote_code=source.trust_remote_code
    )
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            _write(backbone, folder, source.checkpoint, dtype)
            processor.save_pretrained(folder)
            if output.exists():
                output.rmdir()
            folder.replace(output)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The export to {output} could not be written: {error}. Nothing was left behind. Free some space, or "
            "choose an --output on another disk."
        ) from error
    return [output, *(output / name for name in ("projector.safetensors", "adapter") if (output / name).exists())]


def _write(backbone: Backbone, folder: Path, base: str, dtype: torch.dtype) -> None:
    model = backbone.model
    save_projector(backbone, folder / "projector.safetensors", dtype)
    if has_lora(model):
        save_adapter(model, base, folder / "adapter")
        merge_lora(model)
    model.to(dtype)  # type: ignore[arg-type]  # its signature lost in a decorator
    model.save_pretrained(folder)
