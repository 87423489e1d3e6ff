"""What each patch of each view shows of a picture, in closed form.

All that happens to a picture before the patches (padding, resizing, cropping, cutting into tiles)
scales, shifts and cuts each of its two directions independently. Numbers are fractions: no rounding
decides what a patch shows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Geometry, Size, crops_itself, squashed_size


@dataclass(frozen=True)
class Axis:
    """One direction of a processed picture: pixel p of the original is at `scale` * p + `shift`.

    Attributes:
        length: How many pixels there are now.
        scale: How many pixels one pixel of the original takes.
        shift: Where the original begins.
        shown: The range in which something of the original is shown.
    """

    length: int
    scale: Fraction
    shift: Fraction
    shown: tuple[Fraction, Fraction]

    @classmethod
    def of_original(cls, length: int) -> Axis:
        """Return the axis of a picture that nothing was done to."""
        return cls(length, Fraction(1), Fraction(0), (Fraction(0), Fraction(length)))

    def resize(self, length: int) -> Axis:
        """Stretch or shrink to a length."""
        factor = Fraction(length, self.length)
        start, end = self.shown
        return Axis(
            length, self.scale * factor, self.shift * factor, (start * factor, end * factor)
        )

    def cut(self, start: int, length: int) -> Axis:
        """Keep `length` pixels from `start` on; those outside the picture are padding."""
        first, last = (min(max(edge - start, Fraction(0)), Fraction(length)) for edge in self.shown)
        return replace(self, length=length, shift=self.shift - start, shown=(first, last))

    def centre(self, length: int) -> Axis:
        """Keep the middle.

        If the difference is odd, one more pixel is cut at the end, or added in front.
        """
        return self.cut((self.length - length) // 2, length)

    def enclose(self, length: int) -> Axis:
        """Pad on both sides; if the difference is odd, one more pixel is added at the end."""
        return self.cut(-((length - self.length) // 2), length)

    def locate(self, first: Fraction, last: Fraction) -> tuple[Fraction, Fraction]:
        """Return where a part of the original is now, as far as it is shown."""
        start, end = self.shown
        return max(self.scale * first + self.shift, start), min(self.scale * last + self.shift, end)


@dataclass(frozen=True)
class View:
    """A grid of patches on a picture.

    Attributes:
        down: The vertical axis of the picture.
        across: The horizontal axis of the picture.
        rows: Where each row of patches begins, in pixels.
        columns: Where each column of patches begins, in pixels.
        patch: The side of a patch in pixels.
        newline: Whether a separator follows each row.
    """

    down: Axis
    across: Axis
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    patch: int
    newline: bool = False

    def __len__(self) -> int:
        """Return the number of tokens, separators included."""
        return len(self.rows) * (len(self.columns) + self.newline)

    @property
    def layout(self) -> tuple[int, int, bool]:
        """What the text that stands for the view depends on."""
        return len(self.rows), len(self.columns), self.newline

    def find_shown(
        self, left: Fraction, top: Fraction, right: Fraction, bottom: Fraction
    ) -> Tensor:
        """Return which tokens show a part of a rectangle of the original, row after row."""
        rows = self._touch(self.rows, *self.down.locate(top, bottom))
        columns = self._touch(self.columns, *self.across.locate(left, right))
        return self._flatten(rows[:, None] & columns)

    def find_padding(self) -> Tensor:
        """Return which tokens show nothing of the original; separators are not among them."""
        rows = self._touch(self.rows, *self.down.shown)
        columns = self._touch(self.columns, *self.across.shown)
        return self._flatten(~(rows[:, None] & columns))

    def find_separators(self) -> Tensor:
        """Return which tokens are separators."""
        patches = torch.ones(len(self.rows), len(self.columns), dtype=torch.bool)
        return ~self._flatten(patches)

    def _touch(self, starts: tuple[int, ...], first: Fraction, last: Fraction) -> Tensor:
        """Return which rows, or columns, of patches a range touches."""
        if first >= last:
            return torch.zeros(len(starts), dtype=torch.bool)
        begins = torch.tensor(starts)
        return (begins < ceil(last)) & (begins + self.patch > floor(first))

    def _flatten(self, grid: Tensor) -> Tensor:
        """Turn a mask (rows, columns) into one over tokens, False at separators."""
        return pad(grid, (0, int(self.newline))).flatten()


def find_views(
    size: Size, geometry: Geometry, processor: CheckpointProcessor
) -> tuple[View, ...] | None:
    """Return the views that a picture of a size becomes, in the order of their tokens.

    Returns:
        The views; None if what a token shows has no known closed form in this family.
    """
    image_processor, grid = processor.image_processor, processor.family.grid
    patch = getattr(processor.hf, "patch_size", None)
    if grid not in ("fixed", "anyres") or patch is None:
        return None
    across, down = Axis.of_original(size[0]), Axis.of_original(size[1])
    across, down = _apply_geometry(across, down, geometry, image_processor)
    if grid == "anyres":
        return _find_tiles(across, down, processor.hf)
    axes = _apply_processor(across, down, image_processor)
    if axes is None:
        return None
    return (_cut_into_patches(*axes, axes[0].length, patch),)


def count_class_tokens(processor: CheckpointProcessor) -> int:
    """Return how many tokens before the first view are class tokens that the model keeps."""
    if getattr(processor.config, "vision_feature_select_strategy", "") != "full":
        return 0
    return int(getattr(processor.hf, "num_additional_image_tokens", 0))


def count_views(size: Size, processor: CheckpointProcessor) -> int:
    """Return how many views a processor makes of a picture of a size, all tiles counted."""
    image_processor = processor.image_processor
    if processor.family.grid != "anyres":
        return 1
    height, width = select_best_resolution(size[::-1], image_processor.image_grid_pinpoints)
    side: int = image_processor.crop_size.height
    return 1 + int(height // side) * int(width // side)


def _apply_geometry(
    across: Axis, down: Axis, geometry: Geometry, image_processor: Any
) -> tuple[Axis, Axis]:
    """Do to the axes what `apply_geometry` does to a picture."""
    lengths = across.length, down.length
    if lengths[0] == lengths[1] or geometry is Geometry.NATIVE:
        return across, down
    if geometry is Geometry.PAD:
        return across.enclose(max(lengths)), down.enclose(max(lengths))
    if geometry is Geometry.CROP:
        if crops_itself(image_processor):
            return across, down
        return across.centre(min(lengths)), down.centre(min(lengths))
    target = squashed_size(lengths, image_processor)
    return across.resize(target[0]), down.resize(target[1])


def _apply_processor(across: Axis, down: Axis, image_processor: Any) -> tuple[Axis, Axis] | None:
    """Do to the axes what the processors of CLIP, SigLIP and LLaVA-1.5 do to a picture.

    Returns:
        The axes; None for another processor.
    """
    if getattr(image_processor, "do_pad", False):  # LLaVA-1.5's own, which pads first
        side = max(across.length, down.length)
        across, down = across.enclose(side), down.enclose(side)
    if image_processor.do_resize:
        size = image_processor.size
        if size.height and size.width:
            height, width = size.height, size.width
        elif size.shortest_edge and not size.longest_edge:
            height, width = get_resize_output_image_size(
                _make_empty_picture(across, down),
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
    return across, down


def _find_tiles(across: Axis, down: Axis, processor: Any) -> tuple[View, ...] | None:
    """Return the whole picture, squashed, and its tiles as one view.

    Rows and columns that the model cuts off are left out.
    """
    image_processor, patch = processor.image_processor, processor.patch_size
    side = image_processor.crop_size.height
    if (image_processor.size.shortest_edge or image_processor.size.height) != side:
        return None
    target = select_best_resolution(
        (down.length, across.length), image_processor.image_grid_pinpoints
    )
    picture = _make_empty_picture(across, down)
    height, width = get_patch_output_size(picture, target, ChannelDimension.FIRST)
    base = _cut_into_patches(across.resize(side), down.resize(side), side, patch)
    tiles = _cut_into_patches(
        across.resize(width).enclose(target[1]), down.resize(height).enclose(target[0]), side, patch
    )
    # as `unpad_image` of the model, which ends each row with a separator
    patches, kept = processor._get_unpadded_features(
        down.length,
        across.length,
        side // patch,
        side // patch,
        target[0] // side,
        target[1] // side,
    )
    per_row = patches // kept if kept else 0  # the model keeps no row of a strip of 900 x 6
    rows, columns = _keep_middle(tiles.rows, kept), _keep_middle(tiles.columns, per_row)
    return base, replace(tiles, rows=rows, columns=columns, newline=True)


def _cut_into_patches(across: Axis, down: Axis, side: int, patch: int) -> View:
    """Cut a picture into squares of a side, and these into patches; what remains is not seen."""
    return View(
        down, across, _list_starts(down, side, patch), _list_starts(across, side, patch), patch
    )


def _list_starts(axis: Axis, side: int, patch: int) -> tuple[int, ...]:
    """Return where patches begin along an axis."""
    starts: list[int] = []
    for square in range(axis.length // side):
        starts += [square * side + number * patch for number in range(side // patch)]
    return tuple(starts)


def _keep_middle(starts: tuple[int, ...], count: int) -> tuple[int, ...]:
    cut = (len(starts) - count) // 2
    return starts[cut : cut + count]


def _make_empty_picture(across: Axis, down: Axis) -> NDArray[np.uint8]:
    """Return a picture of the right size that takes no memory, for functions that want one."""
    return np.broadcast_to(np.uint8(0), (3, down.length, across.length))
