"""Which views a picture becomes, by its family's grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Geometry, Size, crops_itself, squashed_size
from lightning_mllm.data.images.views.anyres import count_anyres_views, find_anyres_views
from lightning_mllm.data.images.views.axis import Axis
from lightning_mllm.data.images.views.fixed import find_fixed_views, find_square_views
from lightning_mllm.data.images.views.resized import find_merged_views, find_row_views
from lightning_mllm.data.images.views.tiled import find_split_views, find_tiled_views
from lightning_mllm.data.images.views.view import AxisPair, View
from lightning_mllm.families import Grid

_FINDERS: Mapping[Grid, Callable[[AxisPair, CheckpointProcessor], tuple[View, ...] | None]] = {
    "fixed": find_fixed_views,
    "anyres": find_anyres_views,
    "merged": find_merged_views,
    "rows": find_row_views,
    "square": find_square_views,
    "tiles": find_tiled_views,
    "splits": find_split_views,
}

_RESIZES_ANYWAY: tuple[Grid, ...] = ("fixed", "anyres")  # or does without


def find_views(
    size: Size, geometry: Geometry, processor: CheckpointProcessor
) -> tuple[View, ...] | None:
    """Return the views that a picture of a size becomes, in the order of their tokens.

    Returns:
        The views; None if what a token shows has no known closed form in this family.

    Raises:
        DataError: The picture is too long and narrow for the family's processor.
    """
    grid, image_processor = processor.family.grid, processor.image_processor
    if grid is None or not (grid in _RESIZES_ANYWAY or image_processor.do_resize):
        return None
    if _leaves_a_patch_out(processor):
        return None
    picture = AxisPair(*map(Axis.of_original, size))
    return _FINDERS[grid](_apply_geometry(picture, geometry, image_processor), processor)


def count_class_tokens(processor: CheckpointProcessor) -> int:
    """Return how many tokens before the first view are class tokens that the model keeps."""
    if getattr(processor.config, "vision_feature_select_strategy", "") != "full":
        return 0
    return int(getattr(processor.hf, "num_additional_image_tokens", 0))


def count_views(size: Size, processor: CheckpointProcessor) -> int:
    """Return how many views a processor makes of a picture of a size, all tiles counted.

    1 where the family has no known grid.
    """
    if processor.family.grid == "anyres":
        return count_anyres_views(size, processor)
    views = find_views(size, Geometry.NATIVE, processor)
    return len(views) if views else 1


def _leaves_a_patch_out(processor: CheckpointProcessor) -> bool:
    """Return whether the model drops the first patch, as if its tower had a class token."""
    drops = getattr(processor.config, "vision_feature_select_strategy", None) == "default"
    return drops and getattr(processor.hf, "num_additional_image_tokens", None) == 0


def _apply_geometry(picture: AxisPair, geometry: Geometry, image_processor: Any) -> AxisPair:
    """Do to the axes what `apply_geometry` does to a picture."""
    across, down = picture
    lengths = across.length, down.length
    if lengths[0] == lengths[1] or geometry is Geometry.NATIVE:
        return picture
    if geometry is Geometry.PAD:
        return AxisPair(across.enclose(max(lengths)), down.enclose(max(lengths)))
    if geometry is Geometry.CROP:
        if crops_itself(image_processor):
            return picture
        return AxisPair(across.centre(min(lengths)), down.centre(min(lengths)))
    return picture.resize(*squashed_size(lengths, image_processor))
