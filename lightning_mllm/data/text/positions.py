"""Where tokens stand: by one step after each other, or under M-RoPE on a grid within an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Grid = tuple[int, int, int]  # frames, rows and columns of an image's visual tokens


def find_positions(image: Tensor, real: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
    """Return the steps and the offsets of tokens under M-RoPE, as in `MultimodalBatch`.

    An image's tokens share the position of the first one; their offsets are time, row and column.
    The text goes on after the longer side of the grid.

    Args:
        image: (batch, sequence) bool, visual tokens.
        real: (batch, sequence), 1 at all tokens but padding.
        grids: The grid of each image, in the order of its tokens.

    Returns:
        Steps, (batch, sequence), and offsets, (3, batch, sequence).

    Source:
        Qwen2-VL (arXiv 2409.12191), section 2.1.
    """
    steps = [torch.zeros(0, dtype=torch.long)]
    offsets = [torch.zeros(3, 0, dtype=torch.long)]
    for grid in grids:
        frames, rows, columns = grid
        own = torch.zeros(frames * rows * columns, dtype=torch.long)
        own[-1] = max(frames, rows, columns)
        steps.append(own)
        offsets.append(torch.cartesian_prod(*map(torch.arange, grid)).view(-1, 3).T)
    inside = torch.zeros(3, *image.shape, dtype=torch.long)
    inside[:, image] = torch.cat(offsets, dim=1)
    return real.masked_scatter(image, torch.cat(steps)), inside
