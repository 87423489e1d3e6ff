"""One picture of a fixed size: LLaVA-1.5 and its kin, Gemma 3, PaliGemma."""

from __future__ import annotations

from math import isqrt
from typing import Any

from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.views.view import AxisPair, View


def find_fixed_views(picture: AxisPair, processor: CheckpointProcessor) -> tuple[View, ...] | None:
    """Return the one view that the processors of CLIP, SigLIP and LLaVA-1.5 make.

    Returns:
        The view; None for another processor.
    """
    patch = getattr(processor.hf, "patch_size", None)
    resized = _resize_and_crop(picture, processor.image_processor)
    if patch is None or resized is None:
        return None
    return (resized.cut_into_patches(patch, resized.across.length),)


def find_square_views(picture: AxisPair, processor: CheckpointProcessor) -> tuple[View, ...]:
    """Return the one view of a squashed picture, whose patches may be pooled into larger ones."""
    config: Any = processor.config
    size = processor.image_processor.size
    patch: int = config.vision_config.patch_size
    patches = config.vision_config.image_size // patch
    tokens = getattr(config, "mm_tokens_per_image", patches**2)
    pooled = patch * (patches // isqrt(tokens))
    return (picture.resize(size.width, size.height).cut_into_patches(pooled),)


def _resize_and_crop(picture: AxisPair, image_processor: Any) -> AxisPair | None:
    """Do to the axes what the image processor does to a picture; None if that is not known."""
    across, down = picture
    if getattr(image_processor, "do_pad", False):  # LLaVA-1.5's own, which pads first
        side = max(across.length, down.length)
        across, down = across.enclose(side), down.enclose(side)
    if image_processor.do_resize:
        size = image_processor.size
        if size.height and size.width:
            height, width = size.height, size.width
        elif size.shortest_edge and not size.longest_edge:
            height, width = get_resize_output_image_size(
                AxisPair(across, down).make_empty_picture(),
                size.shortest_edge,
                False,
                input_data_format=ChannelDimension.FIRST,
            )
        else:
            return None
        across, down = across.resize(width), down.resize(height)
    if getattr(image_processor, "do_center_crop", False):
        crop = image_processor.crop_size
        across, down = across.centre(crop.width), down.centre(crop.height)
    return AxisPair(across, down)
