"""What each patch of each view shows of a picture, in closed form.

All that happens to a picture before the patches (padding, resizing, cropping, cutting into tiles) scales, shifts and
cuts each of its two directions by itself. Numbers are fractions: no rounding decides what a patch shows.
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
from transformers import ProcessorMixin
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

from lightning_mllm.data.images.geometry import Geometry, crops_itself, makes_tiles, squashed_size


@dataclass(frozen=True)
class Axis:
    """One direction of a picture as it has become: pixel p of the original lies at `scale` * p + `shift`.

    Attributes:
        length: Pixels that there are now.
        scale: What one pixel of the original takes.
        shift: Where the original begins.
        shown: From where to where there is something of the original.
    """

    length: int
    scale: Fraction
    shift: Fraction
    shown: tuple[Fraction, Fraction]

    @classmethod
    def of(cls, length: int) -> Axis:
        """Return the axis of an original."""
        return cls(length, Fraction(1), Fraction(0), (Fraction(0), Fraction(length)))

    def resize(self, length: int) -> Axis:
        """Stretch or shrink to a length."""
        factor = Fraction(length, self.length)
        start, end = self.shown
        return Axis(length, self.scale * factor, self.shift * factor, (start * factor, end * factor))

    def window(self, start: int, length: int) -> Axis:
        """Keep `length` pixels from `start` on; those before the first and behind the last are padding."""
        first, last = (min(max(edge - start, Fraction(0)), Fraction(length)) for edge in self.shown)
        return replace(self, length=length, shift=self.shift - start, shown=(first, last))

    def centre(self, length: int) -> Axis:
        """Keep the middle; of an odd number of pixels, one more is cut at the end, or added in front."""
        return self.window((self.length - length) // 2, length)

    def enclose(self, length: int) -> Axis:
        """Pad on both sides; of an odd number of pixels, one more is added at the end."""
        return self.window(-((length - self.length) // 2), length)

    def place(self, first: Fraction, last: Fraction) -> tuple[Fraction, Fraction]:
        """Return where a part of the original is, as far as it is to be seen."""
        start, end = self.shown
        return max(self.scale * first + self.shift, start), min(self.scale * last + self.shift, end)


@dataclass(frozen=True)
class View:
    """A grid of patches on a picture.

    Attributes:
        down: The vertical axis.
        across: The horizontal axis.
        rows: Where each row of patches begins, in pixels.
        columns: Where each column begins.
        patch: Pixels of a patch's side.
        newline: Whether a separator stands behind each row.
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

    def shows(self, left: Fraction, top: Fraction, right: Fraction, bottom: Fraction) -> Tensor:
        """Return which tokens show a part of a rectangle of the original, row after row."""
        rows = self._touched(self.rows, *self.down.place(top, bottom))
        columns = self._touched(self.columns, *self.across.place(left, right))
        return self._tokens(rows[:, None] & columns)

    def padding(self) -> Tensor:
        """Return which tokens show nothing of the original; separators are not among them."""
        rows, columns = self._touched(self.rows, *self.down.shown), self._touched(self.columns, *self.across.shown)
        return self._tokens(~(rows[:, None] & columns))

    def separators(self) -> Tensor:
        """Return which tokens are separators."""
        patches = self._tokens(torch.ones(len(self.rows), len(self.columns), dtype=torch.bool))
        return ~patches

    def _touched(self, starts: tuple[int, ...], first: Fraction, last: Fraction) -> Tensor:
        if first >= last:
            return torch.zeros(len(starts), dtype=torch.bool)
        begins = torch.tensor(starts)
        return (begins < ceil(last)) & (begins + self.patch > floor(first))

    def _tokens(self, grid: Tensor) -> Tensor:
        """(rows, columns) -> (tokens,), False at separators."""
        return pad(grid, (0, int(self.newline))).flatten()


def views(size: tuple[int, int], geometry: Geometry, processor: ProcessorMixin) -> tuple[View, ...] | None:
    """Return the views that a picture of a (width, height) becomes, in the order of their tokens.

    None where the checkpoint's image processor is none of those of LLaVA-1.5 (CLIP's, SigLIP's) and LLaVA-NeXT.
    """
    image_processor, patch = processor.image_processor, getattr(processor, "patch_size", None)
    if patch is None:
        return None
    across, down = _squared(Axis.of(size[0]), Axis.of(size[1]), geometry, image_processor)
    if makes_tiles(image_processor):
        return _tiled(across, down, processor)
    axes = _processed(across, down, image_processor)
    if axes is None:
        return None
    return (_view(*axes, axes[0].length, patch),)


def count_views(size: tuple[int, int], processor: ProcessorMixin) -> int:
    """Return how many views a processor makes of a picture of a (width, height), all tiles counted."""
    image_processor = processor.image_processor
    if not makes_tiles(image_processor):
        return 1
    height, width = select_best_resolution(size[::-1], image_processor.image_grid_pinpoints)
    side: int = image_processor.crop_size.height
    return 1 + int(height // side) * int(width // side)


def _squared(across: Axis, down: Axis, geometry: Geometry, image_processor: Any) -> tuple[Axis, Axis]:
    """Do to the axes what `apply_geometry` does to a picture."""
    lengths = across.length, down.length
    if lengths[0] == lengths[1] or geometry is Geometry.TILES:
        return across, down
    if geometry is Geometry.PAD:
        return across.enclose(max(lengths)), down.enclose(max(lengths))
    if geometry is Geometry.CROP:
        if crops_itself(image_processor):
            return across, down
        return across.centre(min(lengths)), down.centre(min(lengths))
    target = squashed_size(lengths, image_processor)
    return across.resize(target[0]), down.resize(target[1])


def _processed(across: Axis, down: Axis, image_processor: Any) -> tuple[Axis, Axis] | None:
    """Do to the axes what the processors of CLIP, SigLIP and LLaVA-1.5 do to a picture; None for another."""
    if getattr(image_processor, "do_pad", False):  # LLaVA-1.5's own, which pads first
        side = max(across.length, down.length)
        across, down = across.enclose(side), down.enclose(side)
    if image_processor.do_resize:
        size = image_processor.size
        if size.height and size.width:
            height, width = size.height, size.width
        elif size.shortest_edge and not size.longest_edge:
            height, width = get_resize_output_image_size(
                _stand_in(across, down), size.shortest_edge, False, input_data_format=ChannelDimension.FIRST
            )
        else:
            return None
        across, down = across.resize(width), down.resize(height)
    if getattr(image_processor, "do_center_crop", False):
        across, down = across.centre(image_processor.crop_size.width), down.centre(image_processor.crop_size.height)
    return across, down


def _tiled(across: Axis, down: Axis, processor: Any) -> tuple[View, ...] | None:
    """Return the whole picture, squashed, and its tiles as one view without the rows and columns that are cut off."""
    image_processor, patch = processor.image_processor, processor.patch_size
    side = image_processor.crop_size.height
    if (image_processor.size.shortest_edge or image_processor.size.height) != side:
        return None
    sizes = down.length, across.length
    target = select_best_resolution(sizes, image_processor.image_grid_pinpoints)
    fitted = get_patch_output_size(_stand_in(across, down), target, ChannelDimension.FIRST)
    base = _view(across.resize(side), down.resize(side), side, patch)
    tiles = _view(across.resize(fitted[1]).enclose(target[1]), down.resize(fitted[0]).enclose(target[0]), side, patch)
    counts = side // patch, side // patch, target[0] // side, target[1] // side
    patches, kept = processor._get_unpadded_features(*sizes, *counts)  # as `unpad_image` of the model; one end per row
    width = patches // kept if kept else 0  # of a strip as thin as 900 x 6 the model keeps no row
    rows, columns = _inner(tiles.rows, kept), _inner(tiles.columns, width)
    return base, replace(tiles, rows=rows, columns=columns, newline=True)


def _view(across: Axis, down: Axis, side: int, patch: int) -> View:
    """Cut axes into squares of a side, and these into patches; what is left of a square is not seen."""
    rows, columns = (
        tuple(
            square * side + number * patch for square in range(axis.length // side) for number in range(side // patch)
        )
        for axis in (down, across)
    )
    return View(down, across, rows, columns, patch)


def _inner(starts: tuple[int, ...], count: int) -> tuple[int, ...]:
    cut = (len(starts) - count) // 2
    return starts[cut : cut + count]


def _stand_in(across: Axis, down: Axis) -> NDArray[np.uint8]:
    """Return a picture of the right size that takes no memory, for functions that want one."""
    return np.broadcast_to(np.uint8(0), (3, down.length, across.length))
