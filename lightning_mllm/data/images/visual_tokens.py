"""How many tokens stand for a picture: the processor must count as many as the model makes features."""

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
    """Make a LLaVA-like processor count visual tokens as its model does; older checkpoints don't say how.

    Processors that count otherwise (those without the keys of LLaVA's) are left alone.

    Raises:
        CheckpointError: The picture that the processor makes is none that the model's vision tower takes.
    """
    if not all(hasattr(processor, key) for key in _KEYS):
        return
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    _check_picture(processor, side, checkpoint)
    if getattr(processor.image_processor, "crop_size", None) is None:  # SigLIP's, which crops nothing
        processor.image_processor.crop_size = SizeDict(height=side, width=side)  # LLaVA's processor counts by it
    strategy = config.vision_feature_select_strategy
    positions = _positions(config.vision_config, side)
    expected: dict[str, Any] = dict(zip(_KEYS, (patch, strategy, positions - (side // patch) ** 2), strict=True))
    _repair(processor, expected, "", checkpoint)
    if hasattr(config, "image_grid_pinpoints"):
        pinpoints = {"image_grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints]}
        _repair(processor.image_processor, pinpoints, "image processor's ", checkpoint)


def _repair(owner: Any, expected: dict[str, Any], whose: str, checkpoint: str) -> None:
    wrong = {key: getattr(owner, key) for key, value in expected.items() if getattr(owner, key) != value}
    for key in wrong:
        setattr(owner, key, expected[key])
    if wrong:
        changes = ", ".join(f"{key} {found!r} -> {expected[key]!r}" for key, found in wrong.items())
        logger.warning(
            "The %ssettings in the processor of %r are not those of its model; taken from the model's config: %s",
            whose,
            checkpoint,
            changes,
        )


def _check_picture(processor: ProcessorMixin, side: int, checkpoint: str) -> None:
    image_processor = processor.image_processor
    options = ("crop_size",) if image_processor.do_center_crop else ("size",)
    for name in options:
        found = {key: value for key, value in dict(getattr(image_processor, name) or {}).items() if value is not None}
        if set(found.values()) != {side}:
            raise CheckpointError(
                f"The image processor of {checkpoint!r} makes pictures of {name} {found}, but the model's vision tower "
                f"takes {side} x {side} pixels. Correct {name!r} in its processor_config.json or "
                "preprocessor_config.json."
            )


def _positions(vision_config: PreTrainedConfig, side: int) -> int:
    """Return the number of vectors that a vision tower makes of a picture, its class token included."""
    shallow = copy.deepcopy(vision_config)
    shallow.num_hidden_layers = 1
    with torch.device("meta"), torch.no_grad():  # shapes alone: nothing is allocated or computed
        tower = AutoModel.from_config(shallow)
        return int(tower(torch.empty(1, 3, side, side)).last_hidden_state.shape[1])
