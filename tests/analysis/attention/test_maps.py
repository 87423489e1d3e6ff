"""Spatial entropy: low where attention is in one place; and the elbow of heads' sums."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_mllm.analysis.attention.criteria import find_elbow, find_localising_heads
from lightning_mllm.analysis.attention.maps import spatial_entropies

SPREAD = np.log(36)


def make_map(*cells: tuple[int, int], bottom: float = 0.0) -> np.ndarray:
    found = np.zeros((6, 6))
    for cell in cells:
        found[cell] = 0.1
    found[-1] += bottom
    return found


def test_one_place_has_no_entropy_and_equal_places_that_of_their_number() -> None:
    maps = [
        make_map((0, 0), (1, 1)),  # neighbours across a corner are one place
        make_map((0, 0), (2, 2)),
        make_map((0, 0), (2, 2), (0, 4)),
    ]

    found = spatial_entropies(np.stack(maps))

    np.testing.assert_allclose(found, np.log([1, 2, 3]), atol=1e-12)


def test_places_of_neighbouring_maps_are_apart() -> None:
    one, other = make_map((0, 0)), make_map((0, 0), (3, 3))

    together = spatial_entropies(np.stack([one, other, one]))

    alone = [spatial_entropies(each[None]).item() for each in (one, other, one)]
    np.testing.assert_array_equal(together, alone)


def test_a_map_without_a_place_or_with_a_full_bottom_row_is_spread_out() -> None:
    maps = np.stack([np.full((6, 6), 0.01), make_map((0, 0), bottom=0.1)])

    np.testing.assert_allclose(spatial_entropies(maps), SPREAD)


def test_the_elbow_is_where_the_sums_are_farthest_from_their_chord() -> None:
    sums = np.array([0.9, 0.02, 0.0, 0.5, 0.03, 0.01, 0.04, 0.7])

    assert find_elbow(sums) == 0.04


def test_heads_are_kept_by_their_sum_and_chosen_by_their_entropy() -> None:
    """By its sum, and not by its place among the heads."""
    sums = np.array([0.9, 0.02, 0.0, 0.5, 0.03, 0.01, 0.04, 0.7])
    entropies = np.array([2.0, 0.0, 0.0, 1.5, 0.0, 0.0, 3.0, 1.0])

    found = find_localising_heads(sums, entropies)

    assert found.kept.tolist() == [0, 3, 6, 7]
    assert found.chosen.tolist() == [7, 3, 0]


@pytest.mark.parametrize("unknown", [np.nan])
def test_without_entropies_no_head_is_chosen(unknown: float) -> None:
    found = find_localising_heads(np.linspace(0, 1, 5) ** 2, np.full(5, unknown))

    assert len(found.kept)
    assert not len(found.chosen)
