"""A result that knows what its numbers are of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lightning_mllm.analysis import AnalysisResult
from lightning_mllm.errors import DataError

COORDS: dict[str, tuple[Any, ...]] = {
    "kind": ("a", "b"),
    "layer": (0, 1, 2),
    "statistic": ("value", "n"),
}


def result(**changes: Any) -> AnalysisResult:
    values = np.arange(12, dtype=np.float64).reshape(2, 3, 2)
    settings: dict[str, Any] = {
        "values": values,
        "axes": tuple(COORDS),
        "coords": COORDS,
        **changes,
    }
    return AnalysisResult("flow", n_samples=4, settings={}, **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": np.zeros((2, 3))},
        {"values": np.zeros((2, 2, 2))},
        {"axes": ("kind", "layer")},
        {"axes": ("layer", "kind", "statistic")},
        {"coords": {**COORDS, "block": ("x",)}},
    ],
)
def test_values_whose_shape_disagrees_with_the_coordinates_are_refused(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(
        DataError,
        match=r"'flow' has values of shape .* coordinates for kind 2, layer 3, statistic 2",
    ):
        result(**changes)


def test_numbers_are_found_by_their_coordinates() -> None:
    assert result().at(kind="b", layer=1, statistic="n") == 9
    np.testing.assert_array_equal(result().at(layer=2), [[4, 5], [10, 11]])


@pytest.mark.parametrize(
    ("chosen", "known"), [({"layer": 3}, "0, 1, 2"), ({"block": 1}, "kind, layer, statistic")]
)
def test_an_unknown_coordinate_is_refused_with_those_there_are(
    chosen: dict[str, Any], known: str
) -> None:
    with pytest.raises(DataError, match=f"there is {known}"):
        result().at(**chosen)


def test_the_table_has_a_row_per_place_and_whole_numbers_for_n() -> None:
    columns, rows = result().table()

    assert columns == ["kind", "layer", "value", "n"]
    assert rows[0] == ["a", 0, 0.0, 1]
    assert rows[-1] == ["b", 2, 10.0, 11]
    assert {type(row[-1]) for row in rows} == {int}
