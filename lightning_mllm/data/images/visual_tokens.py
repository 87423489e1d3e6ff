"""How many tokens stand for a picture: as many as the model makes features of it."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, ProcessorMixin
from transformers.image_utils import SizeDict

from lightning_mllm.errors import CheckpointError

logger = logging.getLogger(__name__)


def align_visual_tokens(
    processor: ProcessorMixin, config: PreTrainedConfig, checkpoint: str
) -> None:
    """Make a LLaVA-like processor count visual tokens as its model does.

    Older checkpoints don't say how. Left alone are processors that have nothing to say of it, and
    those of a Pixtral tower, which takes pictures of any size.

    Raises:
        CheckpointError: The model's vision tower does not take pictures as the processor makes
            them, or can't be built.
    """
    if not all(hasattr(owner, "vision_feature_select_strategy") for owner in (processor, config)):
        return
    tower: Any = config.vision_config
    if tower.model_type == "pixtral" or not hasattr(tower, "image_size"):
        _refuse_counting(processor, tower, checkpoint)
        return
    side, patch = tower.image_size, tower.patch_size
    _check_picture(processor, side, checkpoint)
    without_crop = getattr(processor.image_processor, "crop_size", None) is None
    if without_crop and hasattr(processor, "num_additional_image_tokens"):
        # SigLIP's crops nothing, but LLaVA's processor counts by it
        processor.image_processor.crop_size = SizeDict(height=side, width=side)
    positions = _count_positions(tower, side, checkpoint)
    expected: dict[str, Any] = {
        "patch_size": patch,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": positions - (side // patch) ** 2,
        "num_image_tokens": positions,
        "vision_aspect_ratio": getattr(config, "vision_aspect_ratio", None),
    }
    _repair_settings(processor, expected, "", checkpoint)
    if hasattr(config, "image_grid_pinpoints"):
        pinpoints = {"image_grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints]}
        _repair_settings(processor.image_processor, pinpoints, "image processor's ", checkpoint)


def _refuse_counting(processor: ProcessorMixin, tower: Any, checkpoint: str) -> None:
    """Refuse a processor that counts tokens of squares, where the tower takes any size."""
    if hasattr(processor, "num_additional_image_tokens"):
        raise CheckpointError(
            f"The vision tower of {checkpoint!r} is a {tower.model_type!r}, which takes pictures "
            f"of any size, but its {type(processor).__name__} counts the tokens of squares. Use "
            "the processor that the checkpoint was trained with, e.g. PixtralProcessor."
        )


def _repair_settings(owner: Any, expected: dict[str, Any], whose: str, checkpoint: str) -> None:
    """Set what differs from the expected settings, and warn of it."""
    changes = []
    for key, value in expected.items():
        found = getattr(owner, key, value)  # what it does not have, it does not count by
        if found != value:
            setattr(owner, key, value)
            changes.append(f"{key} {found!r} -> {value!r}")
    if changes:
        logger.warning(
            "The %ssettings in the processor of %r are not those of its model; taken from the "
            "model's config: %s",
            whose,
            checkpoint,
            ", ".join(changes),
        )


def _check_picture(processor: ProcessorMixin, side: int, checkpoint: str) -> None:
    """Refuse an image processor that makes pictures of another size than the vision tower takes."""
    image_processor = processor.image_processor
    name = "crop_size" if getattr(image_processor, "do_center_crop", False) else "size"
    size = dict(getattr(image_processor, name) or {})
    found = {key: value for key, value in size.items() if value is not None}
    if set(found.values()) != {side}:
        raise CheckpointError(
            f"The image processor of {checkpoint!r} makes pictures of {name} {found}, but the "
            f"model's vision tower takes {side} x {side} pixels. Correct {name!r} in its "
            "processor_config.json or preprocessor_config.json."
        )


def _count_positions(vision_config: PreTrainedConfig, side: int, checkpoint: str) -> int:
    """Return how many vectors a vision tower makes of a picture, its class token included."""
    shallow = copy.deepcopy(vision_config)
    shallow.num_hidden_layers = 1
    try:
        with torch.device("meta"), torch.no_grad():  # shapes: nothing is allocated or computed
            tower = AutoModel.from_config(shallow)
            return int(tower(torch.empty(1, 3, side, side)).last_hidden_state.shape[1])
    except Exception as error:  # whatever a tower of another kind provokes
        raise CheckpointError(
            f"How many visual tokens a picture has can't be said of checkpoint {checkpoint!r}: its "
            f"vision tower ({vision_config.model_type!r}) can't be tried ({error}). Choose a "
            "checkpoint whose tower takes squares and returns a vector per patch, such as CLIP, "
            "SigLIP, DINOv2 or ViT."
        ) from error
