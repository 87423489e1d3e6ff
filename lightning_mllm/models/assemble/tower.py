"""Opens a vision tower and fits it to the size of the pictures that it is to read."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ImageProcessingMixin, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from lightning_mllm.checkpoint_files import check_checkpoint_available, why_checkpoint_fails
from lightning_mllm.errors import CheckpointError, ConfigError

_UNUSED = re.compile(r"(^|\.)(pooler|head|mask_token)\b")  # no feature depends on these weights


@dataclass(frozen=True)
class Tower:
    """A vision tower for pictures of one size.

    Attributes:
        model: The tower.
        image_processor: Makes its pixels.
        image_size: Height and width of the pixels that it reads.
        patches: Number of patches of a picture.
        has_class_token: Whether a class token comes before the patches.
    """

    model: Any
    image_processor: Any
    image_size: int
    patches: int
    has_class_token: bool


def open_tower(vision: str, image_size: int | None) -> Tower:
    """Open the vision tower of a checkpoint.

    Args:
        vision: Hub id or folder of an image model, such as a CLIP, a SigLIP, a DINOv2 or a ViT.
        image_size: Height and width in pixels of the pictures; by default what its own image
            processor makes. Where the tower was trained with another size, its position embeddings
            are resampled, by its own method.

    Raises:
        CheckpointError: There is no such checkpoint; it is not an image tower of one square picture
            with a token per patch; weights are missing; or it has no image processor.
        ConfigError: `image_size` is not a positive multiple of the tower's patches.
    """
    config = _open_config(vision)
    image_processor = _open_image_processor(vision, image_size)
    model = _open_model(vision, config)
    pixels = _make_pixels(vision, image_processor)
    size, patch = pixels.shape[-1], config.patch_size
    if pixels.shape[-2] != size or size % patch:
        raise ConfigError(
            f"The pictures for {vision!r} would have {pixels.shape[-2]} x {size} pixels, but its "
            f"tower cuts squares into patches of {patch} x {patch}. Set --image_size to a multiple "
            f"of {patch}."
        )
    model = _resample_positions(vision, model, size)
    with torch.no_grad():
        states = model(
            pixels.to(next(model.parameters()).dtype), output_hidden_states=True
        ).hidden_states
    patches = (size // patch) ** 2
    others = states[-1].shape[1] - patches if states[-1].ndim == 3 else -1
    if others not in (0, 1) or states[0].shape != states[-1].shape:
        raise CheckpointError(
            f"The tower of {vision!r} ({config.model_type}) makes {list(states[-1].shape)} of one "
            f"picture of {patches} patches; LLaVA takes one token per patch, and at most a class "
            "token before them. Choose a tower such as CLIP, SigLIP, DINOv2 without registers, or "
            "ViT."
        )
    return Tower(model, image_processor, size, patches, has_class_token=bool(others))


def _open_config(vision: str) -> PretrainedConfig:
    """Return the config of the tower, which may be a part of the checkpoint."""
    check_checkpoint_available(vision, None)
    try:
        whole: Any = AutoConfig.from_pretrained(vision)
    except Exception as error:  # whatever a damaged config provokes
        raise CheckpointError(
            f"The vision tower {vision!r} can't be opened: "
            f"{why_checkpoint_fails(vision, None, error)}. Give the hub id or folder of an image "
            "model, e.g. openai/clip-vit-large-patch14-336."
        ) from error
    config: Any = getattr(whole, "vision_config", whole)
    sizes = (getattr(config, name, None) for name in ("patch_size", "image_size"))
    if type(config) not in MODEL_MAPPING or not all(isinstance(size, int) for size in sizes):
        raise CheckpointError(
            f"{vision!r} (model_type {whole.model_type!r}) is not an image tower of square "
            "pictures and patches. Choose one such as openai/clip-vit-large-patch14-336, "
            "google/siglip-base-patch16-224 or facebook/dinov2-small."
        )
    tower: PretrainedConfig = config
    return tower


def _open_model(vision: str, config: PretrainedConfig) -> Any:
    """Return the tower, in eval mode and the dtype of its files."""
    try:
        model, info = AutoModel.from_pretrained(
            vision, config=config, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        why = why_checkpoint_fails(vision, None, error)
        raise CheckpointError(f"The weights of {vision!r} can't be loaded: {why}.") from error
    if missing := sorted(key for key in info["missing_keys"] if not _UNUSED.search(key)):
        raise CheckpointError(
            f"{vision!r} lacks {len(missing)} weights of a {config.model_type}, the first is "
            f"{missing[0]}. They would be random. Use a complete checkpoint."
        )
    return model


def _open_image_processor(vision: str, image_size: int | None) -> Any:
    """Return the image processor, which makes pictures of the size asked for."""
    try:
        options, _ = ImageProcessingMixin.get_image_processor_dict(vision)
    except OSError as error:
        raise CheckpointError(
            f"{vision!r} has no image processor (preprocessor_config.json). Put one beside its "
            "weights: that of the model that it was trained like."
        ) from error
    name = str(options.get("image_processor_type") or options.get("feature_extractor_type"))
    name = re.sub(r"(FeatureExtractor|ImageProcessor(Fast|Pil)?)$", "ImageProcessorPil", name)
    kind: Any = getattr(transformers, name, None)
    if kind is None:
        raise CheckpointError(
            f"The image processor of {vision!r} is of the type {name!r}, which transformers "
            "doesn't know, or makes with torchvision only. Choose another tower."
        )
    processor = kind(**options)
    if image_size is not None:
        made = _make_pixels(vision, processor).shape[-1]
        for sizes in (processor.size, getattr(processor, "crop_size", None) or {}):
            for side in ("height", "width", "shortest_edge"):
                if length := sizes.get(side):  # CLIP resizes to what it crops, DINOv2 to more
                    sizes[side] = round(length * image_size / made)
    return processor


def _make_pixels(vision: str, image_processor: Any) -> Tensor:
    """Return the pixels of a picture that is no square, (1, 3, height, width)."""
    pixels: Any = image_processor(Image.new("RGB", (500, 375)), return_tensors="pt")["pixel_values"]
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[0] != 1:
        raise CheckpointError(
            f"The image processor of {vision!r} makes something else than one picture of fixed "
            "size. Choose another tower."
        )
    return pixels


def _resample_positions(vision: str, model: Any, image_size: int) -> Any:
    """Return a tower that was made for pictures of a size, with its own resampled positions."""
    if model.config.image_size == image_size:
        return model
    config = copy.deepcopy(model.config)
    config.image_size = image_size
    with torch.device("meta"):
        resized = AutoModel.from_config(config)
    wanted = {name: weights.shape for name, weights in resized.named_parameters()}
    state = model.state_dict()
    changed = [name for name, shape in wanted.items() if state[name].shape != shape]
    embeddings = [each for each in model.modules() if hasattr(each, "interpolate_pos_encoding")]
    if len(changed) != 1 or len(embeddings) != 1:
        raise CheckpointError(
            f"The tower of {vision!r} was made for pictures of {model.config.image_size} pixels, "
            f"and has no way of its own to read {image_size}. Leave --image_size out."
        )
    name = changed[0]
    state[name] = _interpolate(embeddings[0], state[name], wanted[name], image_size)
    fresh = type(model)._from_config(config, dtype=model.dtype)
    fresh.load_state_dict(state)
    return fresh.eval()


@torch.no_grad()
def _interpolate(
    embeddings: nn.Module, positions: Tensor, shape: torch.Size, image_size: int
) -> Tensor:
    """Return the position embeddings of a tower at another size of pictures."""
    precise = copy.deepcopy(embeddings)
    if positions.dtype not in (torch.float32, torch.float64):
        precise = precise.float()
    tokens = torch.zeros(
        1,
        shape[-2],
        shape[-1],
        dtype=torch.promote_types(positions.dtype, torch.float32),
    )
    found: Tensor = precise.interpolate_pos_encoding(tokens, image_size, image_size)  # type: ignore[operator]
    return found.reshape(shape).to(positions.dtype)
