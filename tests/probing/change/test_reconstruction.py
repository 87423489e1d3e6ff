from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.probing.change.reconstruction import PicturePatches, reconstruct_patches

WIDTH = 8


def patches(
    project: Callable[[Tensor], Tensor], count: int = 40, *, boxed: bool = True
) -> list[PicturePatches]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        before = 3 + torch.randn(6, WIDTH, generator=draw)
        shows = torch.arange(6) < 2 if boxed else None
        found.append(PicturePatches(f"s{number}", before, project(before), shows))
    return found


def test_what_a_linear_map_can_undo_is_explained() -> None:
    wide = torch.randn(WIDTH, 12, generator=torch.Generator().manual_seed(1))

    found = reconstruct_patches(patches(lambda before: before @ wide + 1))

    assert found.share() < 1e-6
    assert found.regions == ("all", "object", "other")


def test_a_projection_that_keeps_nothing_leaves_all_unexplained() -> None:
    draw = torch.Generator().manual_seed(2)

    noise = reconstruct_patches(patches(lambda _: torch.randn(6, 5, generator=draw)))
    constant = reconstruct_patches(patches(lambda _: torch.ones(6, 5)))

    assert noise.share() == pytest.approx(1, abs=0.05)
    assert constant.share() == pytest.approx(1)


def test_half_of_the_directions_leave_the_other_half_unexplained() -> None:
    found = reconstruct_patches(patches(lambda before: before[:, : WIDTH // 2], count=200))

    assert found.share() == pytest.approx(0.5, abs=0.03)


def test_objects_and_other_patches_are_all_patches() -> None:
    found = reconstruct_patches(patches(lambda before: before[:, :3]))

    for numbers in (found.unexplained, found.variance, found.patches):
        assert torch.allclose(numbers["object"] + numbers["other"], numbers["all"])
    assert reconstruct_patches(patches(torch.sin, boxed=False)).regions == ("all",)


def test_the_order_of_the_pictures_does_not_matter() -> None:
    def share_of_first(chosen: Sequence[PicturePatches]) -> float:
        found = reconstruct_patches(chosen)
        place = found.sample_ids.index("s0")
        return float(found.unexplained["all"][place])

    pictures = patches(torch.sin)

    assert share_of_first(pictures) == pytest.approx(share_of_first(pictures[::-1]), rel=1e-9)


def test_too_few_pictures_and_equal_patches_are_refused() -> None:
    with pytest.raises(DataError, match="9 pictures are too few, give 10 or more"):
        reconstruct_patches(patches(torch.sin, count=9))
    equal = [PicturePatches(f"s{k}", torch.ones(2, 3), torch.randn(2, 3)) for k in range(12)]
    with pytest.raises(DataError, match="All patches before the projection are the same"):
        reconstruct_patches(equal)
