"""All families, by the model type that a checkpoint's config names."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, NoReturn

from transformers import PretrainedConfig

from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.families.family import Family
from lightning_mllm.families.gemma import GEMMA
from lightning_mllm.families.idefics import IDEFICS
from lightning_mllm.families.llava import LLAVA
from lightning_mllm.families.qwen import QWEN
from lightning_mllm.families.refused import REFUSED
from lightning_mllm.families.tiled import TILED

logger = logging.getLogger(__name__)

FAMILIES: dict[str, Family] = {**LLAVA, **TILED, **IDEFICS, **QWEN, **GEMMA}


def family_of(config: PretrainedConfig) -> Family:
    """Return the family of a model config.

    All that opens a checkpoint asks here first, so that all refuse it with the same sentence. A
    Pixtral tower takes pictures of any size, whatever the family it is in. Of Gemma 4 only the
    large models see images as a whole.

    Raises:
        CheckpointError: The model type is not one of `FAMILIES`.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        _refuse(config)
    text_config: Any = config.get_text_config()
    if getattr(text_config, "use_bidirectional_attention", "vision") is None:
        family = replace(family, sees="causal")
    tower = getattr(config, "vision_config", None)
    if getattr(tower, "model_type", "") == "pixtral":
        return replace(family, grid="rows", native=True)
    return family


def _refuse(config: PretrainedConfig) -> NoReturn:
    """Say why a model type has no family, and the way out."""
    path, model_type = config.name_or_path, config.model_type
    checkpoint = f"Checkpoint {path!r}" if path else "The checkpoint"
    way_out = "Choose a checkpoint of one of these: " + ", ".join(sorted(FAMILIES))
    if why := REFUSED.get(model_type):
        raise CheckpointError(
            f"{checkpoint} is a {model_type!r} model, which can't be used: {why}. {way_out}."
        )
    if not hasattr(config, "vision_config") and not hasattr(config, "thinker_config"):
        raise CheckpointError(
            f"{checkpoint} is a text-only model (model_type {model_type!r}). {way_out}."
        )
    raise CheckpointError(
        f"{checkpoint} is a model of another family (model_type {model_type!r}). {way_out}; or "
        "register its family: see docs/add_a_family.md."
    )


def register_family(model_type: str, family: Family) -> None:
    """Add a family, or replace one; call it before the first checkpoint of this type is opened.

    Args:
        model_type: The `model_type` of the checkpoint's config.json.
        family: Where its parts are, and what can't be found in its config.

    Raises:
        ConfigError: `model_type` is empty, or a prefix of the family is.
    """
    prefixes = (*family.vision, *family.projector)
    if not model_type or not family.vision or not family.projector or not all(prefixes):
        raise ConfigError(
            f"The family {model_type!r} lacks its model_type, or the name of a tower or projector: "
            f"vision is {family.vision}, projector {family.projector}. Give each at least one "
            "prefix of `model.named_parameters()`."
        )
    if model_type in FAMILIES:
        logger.warning("The family of model type %r is replaced in this process.", model_type)
    FAMILIES[model_type] = family
