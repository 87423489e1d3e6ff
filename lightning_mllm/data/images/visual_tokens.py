"""How many tokens stand for a picture: as many as the model makes features of it."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, ProcessorMixin
from transformers.image_utils import SizeDict

from lightning_mllm.errors import CheckpointError

_KEYS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")

logger = logging.getLogger(__name__)


def align_with_model(processor: ProcessorMixin, config: PreTrainedConfig, checkpoint: str) -> None:
    """Make a LLaVA-like processor count visual tokens as its model does.

    Older checkpoints don't say how. Processors without the keys of LLaVA's are left alone.

    Raises:
        CheckpointError: The model's vision tower does not take pictures as the processor makes
            them.
    """
    if not all(hasattr(processor, key) for key in _KEYS):
        return
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    _check_picture(processor, side, checkpoint)
    if getattr(processor.image_processor, "crop_size", None) is None:
        # SigLIP's crops nothing, but LLaVA's processor counts by it
        processor.image_processor.crop_size = SizeDict(height=side, width=side)
    positions = _count_positions(config.vision_config, side)
    expected: dict[str, Any] = {
        "patch_size": patch,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": positions - (side // patch) ** 2,
    }
    _repair_settings(processor, expected, "", checkpoint)
    if hasattr(config, "image_grid_pinpoints"):
        pinpoints = {"image_grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints]}
        _repair_settings(processor.image_processor, pinpoints, "image processor's ", checkpoint)


def _repair_settings(owner: Any, expected: dict[str, Any], whose: str, checkpoint: str) -> None:
    """Set what differs from the expected settings, and warn of it."""
    changes = []
    for key, value in expected.items():
        found = getattr(owner, key)
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
    name = "crop_size" if image_processor.do_center_crop else "size"
    size = dict(getattr(image_processor, name) or {})
    found = {key: value for key, value in size.items() if value is not None}
    if set(found.values()) != {side}:
        raise CheckpointError(
            f"The image processor of {checkpoint!r} makes pictures of {name} {found}, but the "
            f"model's vision tower takes {side} x {side} pixels. Correct {name!r} in its "
            "processor_config.json or preprocessor_config.json."
        )


def _count_positions(vision_config: PreTrainedConfig, side: int) -> int:
    """Return how many vectors a vision tower makes of a picture, its class token included."""
    shallow = copy.deepcopy(vision_config)
    shallow.num_hidden_layers = 1
    with torch.device("meta"), torch.no_grad():  # shapes alone: nothing is allocated or computed
        tower = AutoModel.from_config(shallow)
        return int(tower(torch.empty(1, 3, side, side)).last_hidden_state.shape[1])
