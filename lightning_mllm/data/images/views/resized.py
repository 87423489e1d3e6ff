"""One picture of nearly its own shape, in whole patches: Qwen-VL, Pixtral, Mistral 3."""

from __future__ import annotations

from typing import Any

from transformers.image_utils import ChannelDimension
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.views.view import AxisPair, View
from lightning_mllm.errors import DataError


def find_merged_views(picture: AxisPair, processor: CheckpointProcessor) -> tuple[View, ...]:
    """Return Qwen's one view: both edges are rounded to whole squares of merged patches.

    Raises:
        DataError: The picture is too long and narrow for the processor.
    """
    square, size = _find_square(processor.config), processor.image_processor.size
    limits = {"min_pixels": size.shortest_edge, "max_pixels": size.longest_edge}
    try:
        height, width = smart_resize(
            picture.down.length, picture.across.length, factor=square, **limits
        )
    except ValueError as error:  # longer than 200 times its width
        raise _make_error(picture, processor) from error
    return _cut(picture, processor, (width, height), square)


def find_row_views(picture: AxisPair, processor: CheckpointProcessor) -> tuple[View, ...]:
    """Return Pixtral's one view: both edges are rounded up to whole squares of merged patches.

    Raises:
        DataError: The picture is too long and narrow for the processor.
    """
    square, size = _find_square(processor.config), processor.image_processor.size
    longest = size.longest_edge or (size.height, size.width)
    height, width = get_resize_output_image_size(
        picture.make_empty_picture(), longest, square, ChannelDimension.FIRST
    )
    return _cut(picture, processor, (width, height), square)


def _cut(
    picture: AxisPair, processor: CheckpointProcessor, size: tuple[int, int], square: int
) -> tuple[View, ...]:
    if min(size) < square:
        raise _make_error(picture, processor)
    return (picture.resize(*size).cut_into_patches(square),)


def _find_square(config: Any) -> int:
    """Return the side, in pixels, of what one token shows: some patches are merged into it."""
    vision = config.vision_config
    owner = vision if hasattr(vision, "spatial_merge_size") else config
    return int(vision.patch_size * getattr(owner, "spatial_merge_size", 1))


def _make_error(picture: AxisPair, processor: CheckpointProcessor) -> DataError:
    return DataError(
        f"A picture of {picture.across.length} x {picture.down.length} pixels is too long and "
        f"narrow for {type(processor.hf).__name__}, which keeps proportions. Leave it out, or use "
        "geometry 'pad', 'crop' or 'squash'."
    )
