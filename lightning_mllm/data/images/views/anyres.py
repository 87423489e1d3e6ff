"""The whole picture, then its tiles with a separator after each row: LLaVA-NeXT and OneVision."""

from __future__ import annotations

from dataclasses import replace
from math import floor
from typing import Any

from transformers import LlavaNextProcessor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.images.views.view import AxisPair, View


def find_anyres_views(picture: AxisPair, processor: CheckpointProcessor) -> tuple[View, ...] | None:
    """Return the whole picture, squashed, and its tiles as one view.

    Rows and columns that the model cuts off are left out. OneVision shrinks large maps of tiles:
    there, each token is said to show both patches, in each direction, that it is interpolated from.

    Returns:
        The views; None if the processor crops what it resizes.
    """
    hf: Any = processor.hf
    image_processor = processor.image_processor
    side = _find_side(image_processor)
    patch = getattr(hf, "patch_size", processor.config.vision_config.patch_size)
    if (image_processor.size.shortest_edge or image_processor.size.height) != side:
        return None
    across, down = picture
    target = select_best_resolution(
        (down.length, across.length), image_processor.image_grid_pinpoints
    )
    height, width = get_patch_output_size(
        picture.make_empty_picture(), target, ChannelDimension.FIRST
    )
    resized = picture.resize(width, height)
    enclosed = AxisPair(resized.across.enclose(target[1]), resized.down.enclose(target[0]))
    tiles = enclosed.cut_into_patches(patch, side)
    grid = (side // patch, side // patch, target[0] // side, target[1] // side)
    # as `unpad_image` of the model, which ends each row with a separator
    unpadded: Any = LlavaNextProcessor._get_unpadded_features
    kept = _count_rows_and_columns(unpadded(hf, down.length, across.length, *grid))
    shrunk = _count_rows_and_columns(hf._get_unpadded_features(down.length, across.length, *grid))
    tiles = replace(
        tiles,
        rows=_keep_middle(tiles.rows, kept[0]),
        columns=_keep_middle(tiles.columns, kept[1]),
        newline=True,
        place=(0, 0),
    )
    if shrunk != kept:
        # two patches, and the pixels that no patch of the first one's tile has
        tiles = replace(
            tiles,
            rows=_interpolate(tiles.rows, shrunk[0]),
            columns=_interpolate(tiles.columns, shrunk[1]),
            patch=2 * patch + side % patch,
        )
    return picture.resize(side, side).cut_into_patches(patch), tiles


def count_anyres_views(size: Size, processor: CheckpointProcessor) -> int:
    """Return how many pictures of one size a picture becomes: itself and its tiles."""
    image_processor = processor.image_processor
    height, width = select_best_resolution(size[::-1], image_processor.image_grid_pinpoints)
    side = _find_side(image_processor)
    return 1 + int(height // side) * int(width // side)


def _find_side(image_processor: Any) -> int:
    """Return the side of a tile in pixels; OneVision's processor has no crop."""
    crop = image_processor.crop_size
    return int(crop.height if crop else image_processor.size.height)


def _count_rows_and_columns(counted: tuple[int, int]) -> tuple[int, int]:
    """Turn numbers of patches and of separators into rows and columns.

    The model keeps no row of a strip of 900 x 6 pixels.
    """
    patches, rows = counted
    return rows, patches // rows if rows else 0


def _keep_middle(starts: tuple[int, ...], count: int) -> tuple[int, ...]:
    cut = (len(starts) - count) // 2
    return starts[cut : cut + count]


def _interpolate(starts: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return where the first of the two patches begins that each of fewer tokens is made of."""
    middles = [(k + 0.5) * len(starts) / count - 0.5 for k in range(count)]
    return tuple(starts[max(floor(middle), 0)] for middle in middles)
