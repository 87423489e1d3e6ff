"""Export a trained model: a complete Hugging Face folder, the projector alone, a PEFT adapter."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin

from lightning_mllm.data.geometry import Geometry, GeometryName, check_geometry, default_geometry
from lightning_mllm.data.portable import state_geometry
from lightning_mllm.data.processor import load_processor
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.adapted import Source
from lightning_mllm.models.backbone import Backbone, load_config
from lightning_mllm.models.checkpoint import save_projector
from lightning_mllm.models.lora import has_lora, merge_lora, save_adapter

SHOWN = 120  # characters of a prompt in a warning

log = logging.getLogger(__name__)


def export(
    backbone: Backbone,
    output: Path,
    *,
    source: Source,
    dtype: torch.dtype | None = None,
    geometry: Geometry | GeometryName | None = None,
) -> list[Path]:
    """Write the model, its processor, `projector.safetensors` and, with LoRA, `adapter/`.

    `AutoModelForImageTextToText.from_pretrained(output)` opens the folder, with adapters merged into
    the weights, and `AutoProcessor.from_pretrained(output)` makes the pixels and tokens that the
    model was validated with: the processor is written as `load_processor` repairs it, and with the
    geometry. Where it can't say the geometry, a warning says what is left to do. The adapter is for
    `PeftModel.from_pretrained(base_model, output / "adapter")`; the projection is in it where it is
    not the base model's.

    Args:
        backbone: The trained model; its adapters are merged into the weights.
        output: Folder to make; it must not exist, or be empty.
        source: Checkpoint that the training started from, and whose processor is taken.
        dtype: In which the weights are written; by default that of the source.
        geometry: How pictures were made square; by default what the checkpoint was trained with.

    Returns:
        What was written: the folder and the files in it that stand for themselves.

    Raises:
        ConfigError: The folder has something in it, or the checkpoint's processor can't make tiles.
        CheckpointError: A weight is not finite, or the disk can't be written; nothing is left behind.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty, and nothing is overwritten. Choose another --output.")
    dtype = dtype or _base_dtype(source)
    _check_finite(backbone.model, dtype)
    processor = _processor(source, geometry)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            _write(backbone, folder, source, dtype)
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


def _base_dtype(source: Source) -> torch.dtype:
    config: Any = load_config(source.checkpoint, revision=source.revision, trust_remote_code=source.trust_remote_code)
    return config.dtype or torch.float32


def trained_geometry(record: Mapping[str, Any], data: Any) -> GeometryName | None:
    """Return the geometry that an export has to write, and warn of what it can't write.

    Args:
        record: Our entry in the training checkpoint; without one, the module's `inputs` alone.
        data: The DataModule, whose geometry goes before the checkpoint's; None if there is none.

    Returns:
        Its name; None if nothing but the checkpoint's default can be meant.
    """
    if record.get("edited"):
        log.warning(
            "A callback changed the model's computations in training (e.g. SkipComputations). The "
            "exported model computes everything: its answers are those of an evaluation without the "
            "callback, not those of the validation."
        )
    inputs = record.get("inputs", {})
    if inputs.get("asked") != inputs.get("template"):
        log.warning(
            "The exported chat template does not write what the model was asked. It was asked %r, the "
            "template makes %r of this. Whoever opens the folder has to write the prompt as the first.",
            *_around_the_difference(inputs["asked"], inputs["template"]),
        )
    asked: GeometryName | None = getattr(data, "geometry", None)
    validated: GeometryName | None = inputs.get("geometry")
    if asked and validated and asked != validated:
        log.warning(
            "The model was validated with geometry '%s'; '%s' is exported, as data says.",
            validated,
            asked,
        )
    if "policy" in record and data is None and validated is None:
        log.warning(
            "The training checkpoint does not say how pictures were made square, and no data is named: "
            "the default is exported. Add --config <the run's config.yaml> if it was another."
        )
    return asked or validated


def _around_the_difference(first: str, second: str) -> tuple[str, str]:
    differs = [one != other for one, other in zip(f"{first}\0", f"{second}\1", strict=False)]
    start = max(0, differs.index(True) - SHOWN // 2)
    return first[start : start + SHOWN], second[start : start + SHOWN]


def _processor(source: Source, geometry: Geometry | GeometryName | None) -> ProcessorMixin:
    processor = load_processor(source.checkpoint, source.revision, source.trust_remote_code)
    chosen = default_geometry(processor) if geometry is None else Geometry(geometry)
    check_geometry(chosen, processor)
    if to_do := state_geometry(processor, chosen):
        log.warning(
            "The model takes pictures with geometry '%s', which a %s can't say: the exported processor "
            "leaves it out. Whoever opens the folder without lightning_mllm must do it first to each "
            "picture that is not square: %s.",
            chosen,
            type(processor.image_processor).__name__.removesuffix("Pil"),
            to_do,
        )
    return processor


def _write(backbone: Backbone, folder: Path, source: Source, dtype: torch.dtype) -> None:
    model = backbone.model
    save_projector(backbone, folder / "projector.safetensors", dtype)
    if has_lora(model):
        save_adapter(backbone, source.checkpoint, source.revision, folder / "adapter")
        merge_lora(model)
        _check_finite(model, dtype)
    model.to(dtype)  # type: ignore[arg-type]  # its signature lost in a decorator
    model.save_pretrained(folder)


def _check_finite(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuse weights that are not finite, or would not be in a dtype."""
    for name, parameter in model.named_parameters():
        weights = parameter.detach()
        if torch.isfinite(weights.to(dtype)).all():
            continue
        if torch.isfinite(weights).all():
            found = f"values up to {weights.abs().max():g}, more than {dtype} can hold"
            way_out = "Choose --dtype bfloat16 or float32"
        else:
            count = int((~torch.isfinite(weights)).sum())
            found = f"{count:,} values that are not finite (NaN or infinite)"
            way_out = "Export an earlier checkpoint, or train again with lower learning rates"
        message = f"The weights {name!r} have {found}, so nothing is exported. {way_out}."
        raise CheckpointError(message)
