"""Pools the tokens of a sample's images into one vector; nothing is learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lightning_mllm.errors import ConfigError

PoolingName = Literal["mean", "max", "grid", "cls", "none"]


def pool(
    images: Sequence[Tensor], pooling: PoolingName, cells: int = 2, *, whole: int = 0
) -> Tensor:
    """Pool the tokens of one sample, in float32.

    `mean` and `max` are taken over all tokens of all views of all images. `grid` and `cls` use the
    view that is the whole picture, and are averaged over the images.

    Args:
        images: Images of the sample, each (views, tokens, width).
        pooling: `grid` averages the patches in each of cells x cells equal fields, row by row;
            `cls` takes the first token, so the class token must be among the tokens. `none` is not
            for one vector.
        cells: Number of cells per side of `grid`.
        whole: Which view is the whole picture: the first or the last (-1).

    Returns:
        (width,), for `grid` (cells * cells * width,).

    Raises:
        ConfigError: The tokens for `grid` do not form a square, or have fewer per side than cells.
    """
    if pooling == "grid":
        return torch.stack([_pool_grid(views[whole].float(), cells) for views in images]).mean(
            dim=0
        )
    if pooling == "cls":
        return torch.stack([views[whole, 0].float() for views in images]).mean(dim=0)
    tokens = torch.cat([views.flatten(0, 1) for views in images]).float()
    return tokens.mean(dim=0) if pooling == "mean" else tokens.amax(dim=0)


def _pool_grid(tokens: Tensor, cells: int) -> Tensor:
    """(tokens, width) -> (cells * cells * width,)."""
    count, width = tokens.shape
    side = math.isqrt(count)
    if side**2 != count or side < cells:
        raise ConfigError(
            f"Pooling 'grid' needs a square of at least {cells} x {cells} patches, but an image "
            f"has {count} tokens here. Use pooling mean or max, or fewer cells."
        )
    square = tokens.T.reshape(width, side, side)
    fields: Tensor = adaptive_avg_pool2d(square, cells)  # (width, cells, cells)
    return fields.permute(1, 2, 0).flatten()
