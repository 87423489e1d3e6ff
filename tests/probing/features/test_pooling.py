from __future__ import annotations

import pytest
import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.probing.features.pooling import PoolingName, pool


def images(*shapes: tuple[int, int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_mean_and_max_are_over_all_tokens_of_all_views_and_images() -> None:
    first, second = images((1, 4, 3), (2, 6, 3))
    tokens = torch.cat([first.reshape(-1, 3), second.reshape(-1, 3)])

    torch.testing.assert_close(pool([first, second], "mean"), tokens.mean(0))
    assert torch.equal(pool([first, second], "max"), tokens.max(0).values)


def test_a_grid_of_one_cell_is_the_mean_and_of_all_cells_the_patches_themselves() -> None:
    (image,) = images((1, 16, 3))

    torch.testing.assert_close(pool([image], "grid", 1), pool([image], "mean"))
    assert torch.equal(pool([image], "grid", 4), image.flatten())


def test_a_cell_averages_its_own_patches() -> None:
    square = torch.arange(16.0).reshape(4, 4)

    cells = pool([square.reshape(1, 16, 1)], "grid", 2)

    expected = [
        square[:2, :2].mean(),
        square[:2, 2:].mean(),
        square[2:, :2].mean(),
        square[2:, 2:].mean(),
    ]
    assert cells.tolist() == [float(value) for value in expected]


@pytest.mark.parametrize("whole", [0, -1])
@pytest.mark.parametrize(("pooling", "width"), [("grid", 12), ("cls", 3)])
def test_grid_and_cls_read_the_whole_picture_and_average_over_images(
    pooling: PoolingName, width: int, whole: int
) -> None:
    first, second = images((5, 16, 3), (1, 16, 3))

    both = pool([first, second], pooling, whole=whole)

    assert both.shape == (width,)
    alone = first[whole][None]
    torch.testing.assert_close(both, (pool([alone], pooling) + pool([second], pooling)) / 2)


@pytest.mark.parametrize("pooling", ["mean", "max", "grid", "cls"])
def test_pooling_is_in_float32(pooling: PoolingName) -> None:
    image = images((1, 16, 3))[0].half()

    assert pool([image], pooling).dtype == torch.float32
    assert torch.equal(pool([image], pooling), pool([image.float()], pooling))


@pytest.mark.parametrize(("tokens", "cells"), [(15, 2), (16, 5)])
def test_a_grid_without_a_large_enough_square_is_refused(tokens: int, cells: int) -> None:
    with pytest.raises(
        ConfigError, match=f"'grid' needs a square of at least {cells} x {cells}.* {tokens} tokens"
    ):
        pool(images((1, tokens, 3)), "grid", cells)
