"""A grid of visual tokens on a picture, and which of them show a part of the original."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from lightning_mllm.data.images.views.axis import Axis


@dataclass(frozen=True)
class View:
    """A grid of patches on a picture; a patch is what one visual token shows.

    Attributes:
        down: The vertical axis of the picture.
        across: The horizontal axis of the picture.
        rows: Where each row of patches begins, in pixels.
        columns: Where each column of patches begins, in pixels.
        patch: The side of a patch in pixels.
        newline: Whether a separator follows each row.
        place: Row and column of a tile among those that the picture is cut into; None for the whole
            picture. LLaVA-NeXT's tiles are one view, at (0, 0).
    """

    down: Axis
    across: Axis
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    patch: int
    newline: bool = False
    place: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Return the number of tokens, separators included."""
        return len(self.rows) * (len(self.columns) + self.newline)

    @property
    def layout(self) -> tuple[object, ...]:
        """What the text that stands for the view depends on."""
        return len(self.rows), len(self.columns), self.newline, self.place

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


class AxisPair(NamedTuple):
    """A picture: its two directions."""

    across: Axis
    down: Axis

    def resize(self, width: int, height: int) -> AxisPair:
        """Stretch or shrink to a size."""
        return AxisPair(self.across.resize(width), self.down.resize(height))

    def cut_into_patches(self, patch: int, square: int | None = None) -> View:
        """Return the patches of the picture; what remains at its end is not seen.

        Args:
            patch: The side of a patch in pixels.
            square: The side of the squares that are cut into patches, one by one; by default the
                picture is cut as it is.
        """
        rows = _list_starts(self.down.length, patch, square)
        columns = _list_starts(self.across.length, patch, square)
        return View(self.down, self.across, rows, columns, patch)

    def make_empty_picture(self) -> NDArray[np.uint8]:
        """Return a picture of this size without memory of its own, for functions that want one."""
        return np.broadcast_to(np.uint8(0), (3, self.down.length, self.across.length))


def _list_starts(length: int, patch: int, square: int | None) -> tuple[int, ...]:
    """Return where patches begin along an axis."""
    side = square or length
    starts: list[int] = []
    for first in range(0, length - side + 1, side):
        starts += range(first, first + side - patch + 1, patch)
    return tuple(starts)
