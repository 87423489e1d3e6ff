"""Fields on the samples of a picture: turned grids, smooth noise, waves, specks, strokes.

All arithmetic is on integers, or takes sums, products, quotients and exactly rounded square roots
of doubles, one array operation at a time. So every platform gets equal pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE

Field: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Point: TypeAlias = tuple[float, float]

SAMPLES = 2  # samples per pixel and direction

_CLOCK = ((1.0, 0.0), (0.866, 0.5), (0.5, 0.866))  # 0, 30 and 60 degrees


def field_clock_point(number: int) -> Point:
    """Return the point of the unit circle at `number` times 30 degrees.

    Angles go clockwise from the right, since y points down.
    """
    x, y = _CLOCK[number % 3]
    for _ in range(number // 3 % 4):
        x, y = -y, x
    return x, y


def field_arc_points(x: float, y: float, radius: float, first: int, last: int) -> tuple[Point, ...]:
    """Return the points of an arc, from one number to another; see `field_clock_point`."""
    points = []
    for number in range(first, last + 1):
        across, down = field_clock_point(number)
        points.append((x + radius * across, y + radius * down))
    return tuple(points)


def random_field_turn(draw: Draw, most: float) -> Point:
    """Return cosine and sine of a random angle.

    Half of the angle has at most the tangent `most`; with 1.0 the angle is at most a right one.
    """
    tangent = most * draw.between(-1000, 1000) / 1000
    square = tangent * tangent
    return (1 - square) / (1 + square), 2 * tangent / (1 + square)


@cache
def field_grid(samples: int = SAMPLES) -> tuple[Field, Field]:
    """Return the samples' x (1, n) and y (n, 1), in pixels from the picture's centre."""
    steps = (np.arange(SIDE * samples) + 0.5) / samples - SIDE / 2
    steps.flags.writeable = False
    return steps[None, :], steps[:, None]


def turned_field_grid(
    angle: Point, center: Point = (0.0, 0.0), scale: float = 1.0, samples: int = SAMPLES
) -> tuple[Field, Field]:
    """Return the samples in the axes of a thing that is turned, moved and scaled, each (n, n)."""
    x, y = field_grid(samples)
    cosine, sine = angle
    x, y = (x - center[0]) / scale, (y - center[1]) / scale
    return cosine * x + sine * y, cosine * y - sine * x


@cache
def _interpolation_weights(side: int, cells: int) -> tuple[NDArray[np.int64], Field]:
    """Return, per sample, the index of the lattice line before it, and the weight of the next."""
    place = (2 * np.arange(side) + 1) * cells
    share = place % (2 * side) / (2 * side)
    return place // (2 * side), share * share * (3 - 2 * share)


def smooth_noise_field(
    draw: Draw, rows: int, columns: int, *, fields: int = 1, side: int = SIDE * SAMPLES
) -> Field:
    """Return smooth noise from -1 to 1, of shape (fields, side, side): an interpolated lattice.

    Args:
        draw: Random choices, here the values of the lattice.
        rows: Number of cells of the lattice from top to bottom.
        columns: Number of cells from left to right.
        fields: Number of independent fields, 3 at most.
        side: Number of samples per direction.
    """
    lattice = draw.noise(rows + 1, columns + 1, 1000).transpose(2, 0, 1)[:fields] / 1000
    row, down = _interpolation_weights(side, rows)
    column, right = _interpolation_weights(side, columns)
    upper, lower = lattice[:, row], lattice[:, row + 1]
    lines = upper + (lower - upper) * down[:, None]
    return lines[:, :, column] + (lines[:, :, column + 1] - lines[:, :, column]) * right


def fractional_field(field: Field) -> Field:
    """Return the field minus its floor: from 0 to 1, for negative numbers too."""
    return field - np.floor(field)


def parabola_wave_field(field: Field) -> Field:
    """Return a wave of period 1 from -1 to 1, made of parabolas instead of a sine."""
    place = 2 * fractional_field(field) - 1
    return 4 * place * (1 - abs(place))


def zigzag_wave_field(field: Field) -> Field:
    """Return a zigzag of period 1 from 0 to 1."""
    return abs(2 * fractional_field(field) - 1)


def soft_step_field(field: Field, slope: float = 1.0) -> Field:
    """Return a ramp from 0 to 1 around the field's zero line, with this slope."""
    return np.clip(field * slope + 0.5, 0.0, 1.0)


def hexagon_field(u: Field, v: Field) -> Field:
    """Return the distance from the centre of each hexagon of a honeycomb, 0.5 at its sides."""
    tall = 1.732
    across, down = fractional_field(u) - 0.5, (fractional_field(v / tall) - 0.5) * tall
    other_across = fractional_field(u + 0.5) - 0.5
    other_down = (fractional_field(v / tall + 0.5) - 0.5) * tall
    distance = across * across + down * down
    nearer = distance < other_across * other_across + other_down * other_down
    across = abs(np.where(nearer, across, other_across))
    down = abs(np.where(nearer, down, other_down))
    return np.maximum(across, 0.5 * across + 0.866 * down)


def speckled_field(draw: Draw, u: Field, v: Field, radius: Point, percent: int) -> Field:
    """Return round specks with soft edges, from 0 to 1, at most one in each unit cell.

    Args:
        draw: Random choices, here of places and sizes.
        u: First coordinate, between -100 and 100.
        v: Second coordinate, between -100 and 100.
        radius: Least and greatest radius, below 0.5.
        percent: Percentage of the cells that have a speck.
    """
    left, top = np.floor(u), np.floor(v)
    column, row = left.astype(np.int64), top.astype(np.int64)
    column -= column.min()
    row -= row.min()
    dice = draw.noise(int(row.max()) + 1, int(column.max()) + 1, 500) / 500  # -1 to 1
    shift_x, shift_y, spread = dice[..., 0], dice[..., 1], dice[..., 2]
    low, high = radius
    size = low + (high - low) * abs(spread)
    is_filled = np.floor(abs(shift_x + shift_y) * 1000) % 100 < percent
    reach = np.where(is_filled, size * size, -1.0)
    across = u - left - 0.5 - (shift_x * (0.5 - size))[row, column]
    down = v - top - 0.5 - (shift_y * (0.5 - size))[row, column]
    return soft_step_field(reach[row, column] - (across * across + down * down), 8.0)


def mark_stroke_in_field(
    mask: Mask, points: Sequence[Point], width: float, samples: int = SAMPLES
) -> None:
    """Mark a line with round joints and ends.

    Args:
        mask: Square mask of samples, changed in place.
        points: Corners of the line, in pixels from the picture's centre.
        width: Width of the line in pixels.
        samples: Samples per pixel and direction.
    """
    columns, rows = field_grid(samples)
    square = width * width / 4
    for (x, y), (next_x, next_y) in pairwise(points):
        step_x, step_y = next_x - x, next_y - y
        reach = (max(abs(step_x), abs(step_y)) + width) / 2
        part = field_slices_around((x + next_x) / 2, (y + next_y) / 2, reach, samples)
        across, down = columns[:, part[1]] - x, rows[part[0]] - y
        length = max(step_x * step_x + step_y * step_y, 1e-9)
        along = np.clip((across * (step_x / length)) + (down * (step_y / length)), 0.0, 1.0)
        aside, below = across - along * step_x, down - along * step_y
        mask[part] |= aside * aside + below * below < square


def field_slices_around(
    x: float, y: float, reach: float, samples: int = SAMPLES
) -> tuple[slice, slice]:
    """Return the rows and columns of the samples around a point, clipped to the picture."""
    return _slice_around(y, reach, samples), _slice_around(x, reach, samples)


def _slice_around(place: float, reach: float, samples: int) -> slice:
    last = SIDE * samples
    low = int((place + -reach + SIDE / 2) * samples)
    high = int((place + reach + SIDE / 2) * samples)
    return slice(min(max(low, 0), last), min(max(high + 1, 0), last))
