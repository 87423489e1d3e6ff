"""The edges of patches on a picture agree with which patches show a box."""

from __future__ import annotations

from fractions import Fraction

import pytest

from lightning_mllm.data import load_processor
from lightning_mllm.data.images.geometry import Geometry
from lightning_mllm.data.images.patch_edges import describe_patch_edges
from lightning_mllm.data.images.views import find_views

SIZES = ((56, 28), (41, 30), (100, 37), (28, 84))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("geometry", [Geometry.PAD, Geometry.CROP, Geometry.SQUASH])
def test_the_middle_of_each_patch_is_shown_by_that_patch_alone(
    size: tuple[int, int], geometry: Geometry, tiny_llava: str
) -> None:
    processor = load_processor(tiny_llava)
    views = find_views(size, geometry, processor)
    assert views is not None
    (view,) = views
    found = describe_patch_edges(size, len(view), geometry, processor)

    (edges,) = found["views"]
    assert (found["ahead"], edges["newline"], edges["whole"]) == (0, False, True)
    token = 0
    for top, bottom in edges["down"]:
        for left, right in edges["across"]:
            middle = Fraction(left + right) / 2 * size[0], Fraction(top + bottom) / 2 * size[1]
            if 0 < middle[0] < size[0] and 0 < middle[1] < size[1]:
                point = Fraction(1, 10**4)
                shown = view.find_shown(*middle, middle[0] + point, middle[1] + point)
                assert shown.nonzero().flatten().tolist() == [token]
            token += 1
    assert token == len(view)


def test_tokens_of_an_unknown_number_have_no_grid(tiny_llava: str) -> None:
    processor = load_processor(tiny_llava)

    assert describe_patch_edges((28, 28), 7, Geometry.PAD, processor) == {"ahead": 7, "views": []}
