"""Means and ratios where some numbers are missing; NaN stands for a missing number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def divide_unless_missing(above: Any, below: Any) -> Floats:
    """Return a ratio of arrays that broadcast; NaN where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(above), np.shape(below))
    ratio: Floats = np.divide(
        above, below, out=np.full(shape, np.nan), where=np.not_equal(below, 0)
    )
    return ratio


def mean_unless_missing(values: NDArray[Any], there: NDArray[np.bool_], axis: int = 0) -> Floats:
    """Return the mean along an axis of the values that are there; NaN of none."""
    return divide_unless_missing(np.where(there, values, 0).sum(axis=axis), there.sum(axis=axis))
