"""Export a trained model: a complete Hugging Face folder, the projector alone, a PEFT adapter."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.card_facts import CardFacts
from lightning_mllm.models.checkpoint import save_projector
from lightning_mllm.models.loading import load_config
from lightning_mllm.models.lora import has_lora, merge_lora, save_adapter
from lightning_mllm.models.model_card import make_model_card
from lightning_mllm.models.source import Source
from lightning_mllm.store.files import replacing_folder, write_text

logger = logging.getLogger(__name__)


class SavableProcessor(Protocol):
    """A processor that can be written beside the weights."""

    def save(self, folder: Path) -> None:
        """Write its files to a folder."""


def export(
    backbone: Backbone,
    output: Path,
    *,
    source: Source,
    processor: SavableProcessor,
    dtype: torch.dtype | None = None,
    facts: CardFacts = CardFacts(),
) -> list[Path]:
    """Write the model, its processor and card, `projector.safetensors` and, with LoRA, `adapter/`.

    `AutoModelForImageTextToText.from_pretrained(output)` opens the folder, with adapters merged
    into the weights. `AutoProcessor.from_pretrained(output)`, with the packages that the family's
    needs, makes the pixels and tokens that the model was validated with, if the processor comes
    from `data.images.portable.portable_processor`.
    The adapter is for `PeftModel.from_pretrained(base_model, output / "adapter")`; it includes the
    projection if that is not the base model's, but no weights of LLM or tower that were trained
    beside the adapters.

    Args:
        backbone: The trained model; its adapters are merged into the weights.
        output: Folder to create; it must not exist, or be empty.
        source: Checkpoint that the training started from.
        processor: Processor of the model's inputs, which is written beside the weights.
        dtype: Dtype of the written weights; by default that of the source.
        facts: What the model card, `README.md`, says of the training.

    Returns:
        What was written: the folder, and in it the files that can be used alone.

    Raises:
        ConfigError: The folder has something in it.
        CheckpointError: A weight is not finite, or the disk can't be written; then nothing is left.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigError(
            f"{output} is not empty, and nothing is overwritten. Choose another --output."
        )
    dtype = dtype or _base_dtype(source)
    _check_finite(backbone.model, dtype)
    try:
        with replacing_folder(output) as folder:
            _write(backbone, folder, source, dtype)
            logger.info("Writing the processor")
            processor.save(folder)
            card = make_model_card(source, facts, folder, output.resolve().name)
            write_text(folder / "README.md", str(card))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The export to {output} could not be written: {error}. Nothing was left behind. Free "
            "some space, or choose an --output on another disk."
        ) from error
    alone = (output / "projector.safetensors", output / "adapter")
    return [output, *filter(Path.exists, alone)]


def check_held_whole(device_map: object, sharding: object) -> None:
    """Refuse to export what no memory holds as a whole.

    Args:
        device_map: The model's option; None where all of it is in one place.
        sharding: How it is divided among processes; None if it is not.

    Raises:
        ConfigError: The model is divided among devices or processes.
    """
    if device_map is not None:
        raise ConfigError(
            "An export holds the whole model in the CPU's memory. Leave model.device_map out: "
            "--model.device_map null."
        )
    if sharding is not None:
        raise ConfigError(
            "The model is divided among processes (trainer.strategy fsdp2), so none has all of it. "
            "Export its checkpoint in one process: lightning export --config RUN/config.yaml "
            "--ckpt_path RUN/checkpoints/last.ckpt."
        )


def _base_dtype(source: Source) -> torch.dtype:
    config: Any = load_config(
        source.checkpoint, revision=source.revision, trust_remote_code=source.trust_remote_code
    )
    return config.dtype or torch.float32


def _write(backbone: Backbone, folder: Path, source: Source, dtype: torch.dtype) -> None:
    model = backbone.model
    save_projector(backbone, folder / "projector.safetensors", dtype)
    if has_lora(model):
        save_adapter(backbone, source.checkpoint, source.revision, folder / "adapter")
        logger.info("Merging the adapters into the weights")
        merge_lora(model)
        _check_finite(model, dtype)
    count = sum(parameter.numel() for parameter in model.parameters())
    logger.info("Writing %s weights in %s", f"{count:,}", str(dtype).partition(".")[2])
    model.to(dtype)  # type: ignore[arg-type]  # its signature lost in a decorator
    model.save_pretrained(folder)


def _check_finite(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuse weights that are not finite, or would not be finite in a dtype."""
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
