"""Tiles, row by row, then the whole picture: InternVL, Aya Vision, GOT-OCR2, Idefics 3, SmolVLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.views.view import AxisPair, View


def find_tiled_views(picture: AxisPair, processor: CheckpointProcessor) -> tuple[View, ...]:
    """Return the tiles of a squashed picture and, if there are several, the whole picture."""
    config: Any = processor.config
    image_processor = processor.image_processor
    options = dict(getattr(processor.hf, "images_kwargs", {}))  # go before the image processor's
    crops, least, most = (
        options.get(name, getattr(image_processor, name))
        for name in ("crop_to_patches", "min_patches", "max_patches")
    )
    side = image_processor.size.height
    columns, rows = 1, 1
    if crops and most > 1:
        size = picture.down.length, picture.across.length
        columns, rows = get_optimal_tiled_canvas(size, (side, side), least, most)
    shrinks = getattr(config, "downsample_factor", 4)  # GOT's projector halves a grid twice
    if hasattr(config, "downsample_ratio"):
        shrinks = 1 / config.downsample_ratio
    return _cut_into_tiles(picture, (columns, rows), side, config.vision_config, shrinks)


def find_split_views(picture: AxisPair, processor: CheckpointProcessor) -> tuple[View, ...] | None:
    """Return the splits of a picture and, if there are several, the whole picture, squashed.

    Returns:
        The views; None if the processor does not resize to a longest edge.
    """
    config: Any = processor.config
    image_processor = processor.image_processor
    side = image_processor.max_image_size["longest_edge"]
    columns, rows = 1, 1
    if image_processor.do_image_splitting:
        longest = image_processor.size.longest_edge
        if not longest:
            return None
        height, width = get_resize_output_image_size(picture.make_empty_picture(), longest)
        # the longer edge first, and the other one in proportion to it
        proportion = width / height
        if width >= height:
            columns = ceil(width / side)
            rows = ceil(int(columns * side / proportion) / side)
        else:
            rows = ceil(height / side)
            columns = ceil(int(rows * side * proportion) / side)
    return _cut_into_tiles(
        picture, (columns, rows), side, config.vision_config, config.scale_factor
    )


def _cut_into_tiles(
    picture: AxisPair, grid: tuple[int, int], side: int, vision_config: Any, shrinks: float
) -> tuple[View, ...]:
    """Return a view for each tile, and one of the whole picture.

    Args:
        picture: The picture before it is resized.
        grid: How many tiles are beside and below each other.
        side: The side of a tile in pixels.
        vision_config: The config of the tower, which names the side of its patches.
        shrinks: How many patches, along an axis, become one token.
    """
    edge: int | Sequence[int] = vision_config.patch_size
    patch = round((edge if isinstance(edge, int) else edge[0]) * shrinks)
    whole = picture.resize(side, side).cut_into_patches(patch)
    columns, rows = grid
    if columns * rows == 1:
        return (whole,)
    large = picture.resize(columns * side, rows * side)
    tiles = []
    for number in range(columns * rows):
        row, column = divmod(number, columns)
        tile = AxisPair(large.across.cut(column * side, side), large.down.cut(row * side, side))
        tiles.append(replace(tile.cut_into_patches(patch), place=(row, column)))
    return (*tiles, whole)
