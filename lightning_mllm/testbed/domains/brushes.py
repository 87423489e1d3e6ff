"""What the domains draw with: turned grids, smooth noise, strokes, specks, colours.

All arithmetic is of integers, or of sums, products and quotients of doubles (and exactly rounded square roots), one
array operation at a time; so every platform gets equal pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE

Field: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Canvas: TypeAlias = NDArray[np.int64]
Color: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

SAMPLES = 2  # per pixel and direction
WHOLE = 256  # coverage of a pixel that is all paint

_CLOCK = ((1.0, 0.0), (0.866, 0.5), (0.5, 0.866))  # 0, 30 and 60 degrees
_NOISE = (6, 14)  # least and most amplitude of the noise, of 255
_LUMA = (299, 587, 114)  # thousandths


def hour(number: int) -> Point:
    """Return the point of the unit circle at `number` times 30 degrees, clockwise from the right (y is down)."""
    x, y = _CLOCK[number % 3]
    for _ in range(number // 3 % 4):
        x, y = -y, x
    return x, y


def arc(x: float, y: float, radius: float, first: int, last: int) -> tuple[Point, ...]:
    """Return the corners of an arc, from one hour to another; see `hour`."""
    return tuple((x + radius * hour(number)[0], y + radius * hour(number)[1]) for number in range(first, last + 1))


def turn(draw: Draw, most: float) -> Point:
    """Return cosine and sine of a random angle; its half has at most the tangent `most`, so 1.0 is a right angle."""
    tangent = most * draw.between(-1000, 1000) / 1000
    square = tangent * tangent
    return (1 - square) / (1 + square), 2 * tangent / (1 + square)


@cache
def grid(samples: int = SAMPLES) -> tuple[Field, Field]:
    """Return the pixels' samples: columns (1, n) and rows (n, 1), in pixels from the picture's centre."""
    step = (np.arange(SIDE * samples) + 0.5) / samples - SIDE / 2
    step.flags.writeable = False
    return step[None, :], step[:, None]


def turned(angle: Point, center: Point = (0.0, 0.0), scale: float = 1.0, samples: int = SAMPLES) -> tuple[Field, Field]:
    """Return the grid of samples in the axes of a thing that is turned, moved and enlarged, each (n, n)."""
    (x, y), (cosine, sine) = grid(samples), angle
    x, y = (x - center[0]) / scale, (y - center[1]) / scale
    return cosine * x + sine * y, cosine * y - sine * x


@cache
def _weights(side: int, cells: int) -> tuple[NDArray[np.int64], Field]:
    """Return, per sample, the lattice line before it and the smooth share of the next one."""
    place = (2 * np.arange(side) + 1) * cells
    share = place % (2 * side) / (2 * side)
    return place // (2 * side), share * share * (3 - 2 * share)


def smooth(draw: Draw, rows: int, columns: int, *, fields: int = 1, side: int = SIDE * SAMPLES) -> Field:
    """Return smooth noise from -1 to 1, of shape (fields, side, side): a random lattice, interpolated.

    Args:
        draw: Gives the lattice.
        rows: Cells of the lattice from top to bottom.
        columns: Cells from left to right.
        fields: Independent fields, 3 at most.
        side: Samples of the result per direction.
    """
    lattice = draw.noise(rows + 1, columns + 1, 1000).transpose(2, 0, 1)[:fields] / 1000
    row, down = _weights(side, rows)
    column, right = _weights(side, columns)
    rising = lattice[:, row] + (lattice[:, row + 1] - lattice[:, row]) * down[:, None]
    return rising[:, :, column] + (rising[:, :, column + 1] - rising[:, :, column]) * right


def fraction(field: Field) -> Field:
    """Return the part behind the point, from 0 to 1, of negative numbers too."""
    return field - np.floor(field)


def wave(field: Field) -> Field:
    """Return a wave of period 1 from -1 to 1, of parabolas instead of a sine."""
    place = 2 * fraction(field) - 1
    return 4 * place * (1 - abs(place))


def ridge(field: Field) -> Field:
    """Return a zigzag of period 1 from 0 to 1."""
    return abs(2 * fraction(field) - 1)


def soft(field: Field, slope: float = 1.0) -> Field:
    """Return 0 to 1 around the field's zero line; the slope is that of the ramp."""
    return np.clip(field * slope + 0.5, 0.0, 1.0)


def hexagons(u: Field, v: Field) -> Field:
    """Return the distance from the centre of each hexagon of a honeycomb, up to 0.5 at its sides."""
    tall = 1.732
    across, down = fraction(u) - 0.5, (fraction(v / tall) - 0.5) * tall
    other_across, other_down = fraction(u + 0.5) - 0.5, (fraction(v / tall + 0.5) - 0.5) * tall
    nearer = across * across + down * down < other_across * other_across + other_down * other_down
    across, down = abs(np.where(nearer, across, other_across)), abs(np.where(nearer, down, other_down))
    return np.maximum(across, 0.5 * across + 0.866 * down)


def specks(draw: Draw, u: Field, v: Field, radius: Point, percent: int) -> Field:
    """Return round specks with soft edges, from 0 to 1, at most one in each unit cell of two fields.

    Args:
        draw: Gives their places.
        u: First coordinate, between -100 and 100.
        v: Second coordinate.
        radius: Least and most radius, below 0.5.
        percent: How many cells have one.
    """
    left, top = np.floor(u), np.floor(v)
    column, row = left.astype(np.int64), top.astype(np.int64)
    column -= column.min()
    row -= row.min()
    dice = draw.noise(int(row.max()) + 1, int(column.max()) + 1, 500) / 500  # -1 to 1
    low, high = radius
    size = low + (high - low) * abs(dice[..., 2])
    here = np.floor(abs(dice[..., 0] + dice[..., 1]) * 1000) % 100 < percent
    reach = np.where(here, size * size, -1.0)
    across = u - left - 0.5 - (dice[..., 0] * (0.5 - size))[row, column]
    down = v - top - 0.5 - (dice[..., 1] * (0.5 - size))[row, column]
    return soft(reach[row, column] - (across * across + down * down), 8.0)


def stroke(mask: Mask, points: Sequence[Point], width: float, samples: int = SAMPLES) -> None:
    """Mark what is within half a width of a line with round joints.

    Args:
        mask: Square, of samples; changed in place.
        points: Corners, in pixels from the picture's centre.
        width: In pixels.
        samples: Per pixel and direction.
    """
    columns, rows = grid(samples)
    square = width * width / 4
    for (x, y), (next_x, next_y) in pairwise(points):
        step_x, step_y = next_x - x, next_y - y
        reach = (max(abs(step_x), abs(step_y)) + width) / 2
        part = window((x + next_x) / 2, (y + next_y) / 2, reach, samples)
        across, down = columns[:, part[1]] - x, rows[part[0]] - y
        length = max(step_x * step_x + step_y * step_y, 1e-9)
        along = np.clip((across * (step_x / length)) + (down * (step_y / length)), 0.0, 1.0)
        aside, below = across - along * step_x, down - along * step_y
        mask[part] |= aside * aside + below * below < square


def window(x: float, y: float, reach: float, samples: int = SAMPLES) -> tuple[slice, slice]:
    """Return the rows and columns of the samples around a point, clipped to the picture."""
    last = SIDE * samples

    def span(place: float) -> slice:
        low, high = (int((place + step + SIDE / 2) * samples) for step in (-reach, reach))
        return slice(min(max(low, 0), last), min(max(high + 1, 0), last))

    return span(y), span(x)


def coverage(levels: Field | Mask) -> Canvas:
    """Return how much of each pixel is covered, 0 to `WHOLE`, from samples between 0 and 1."""
    samples = len(levels) // SIDE
    share = WHOLE // samples**2
    parts = levels.astype(np.int16) * share if levels.dtype == np.bool_ else (levels * share).astype(np.int16)
    rows = sum((parts[first::samples] for first in range(1, samples)), parts[::samples])
    whole = sum((rows[:, first::samples] for first in range(1, samples)), rows[:, ::samples])
    pixels: Canvas = whole.astype(np.int64)
    return pixels


def color(draw: Draw, low: int = 30, high: int = 225) -> Color:
    """Return a colour with channels between two values."""
    return draw.between(low, high), draw.between(low, high), draw.between(low, high)


def luma(shade: Color) -> int:
    """Return the brightness of a colour, 0 to 255."""
    return sum(weight * channel for weight, channel in zip(_LUMA, shade, strict=True)) // 1000


def two_colors(draw: Draw, least: int) -> tuple[Color, Color]:
    """Return two colours whose brightness differs by at least `least`; either may be the brighter one."""
    while True:
        first, second = color(draw), color(draw)
        if abs(luma(first) - luma(second)) >= least:
            return first, second


def ground(draw: Draw, shade: Color, amplitude: int, cells: int = 3) -> Canvas:
    """Return a canvas of one colour with slow changes of brightness."""
    change: Canvas = (smooth(draw, cells, cells, side=SIDE)[0] * amplitude).astype(np.int64)
    return np.array(shade) + change[..., None]


def paint(canvas: Canvas, shade: Color | Canvas, cover: Canvas) -> Canvas:
    """Return a canvas with paint on it, as far as it covers each pixel."""
    return canvas + ((np.asarray(shade) - canvas) * cover[..., None] // WHOLE)


def finish(draw: Draw, canvas: Canvas) -> Image.Image:
    """Add noise and return the picture."""
    noisy = canvas + draw.noise(SIDE, SIDE, draw.between(*_NOISE))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
