"""Signs of a few strokes: the easy domain.

A class is a shape that no scene of the world has. Place, size, colours, width of the strokes, slant
and mirroring are random, and tell nothing about the class.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from lightning_mllm.testbed.domains.fields import (
    Mask,
    Point,
    field_arc_points,
    field_clock_point,
    mark_stroke_in_field,
    random_field_turn,
)
from lightning_mllm.testbed.domains.painting import (
    contrasting_paints,
    measure_paint_coverage,
    paint_ground,
    paint_noise,
    paint_over,
)
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE

_SAMPLES = 4  # samples per pixel and direction: strokes are thin
_WOBBLE = 6  # greatest displacement of a corner, in tenths of its unit

Line = tuple[Point, ...]

# Corners of the lines: x points right and y down, both from -10 to 10.
_LINES: dict[str, tuple[Line, ...]] = {
    "anchor": (
        field_arc_points(0, -7.5, 2.5, 0, 12),
        ((0, -5), (0, 9)),
        ((-4, -2.5), (4, -2.5)),
        ((9, -1), *field_arc_points(0, 1, 8, 0, 6), (-9, -1)),
    ),
    "arrow": (((-10, 0), (10, 0)), ((3, -7), (10, 0), (3, 7))),
    "bolt": (((3, -10), (-6, 2), (0, 2), (-3, 10), (6, -2), (0, -2), (3, -10)),),
    "comb": (((-9, -6), (9, -6)), *(((x, -6), (x, 6)) for x in (-9, -4.5, 0, 4.5, 9))),
    "crown": (((-9, 7), (-9, -6), (-4, 1), (0, -8), (4, 1), (9, -6), (9, 7), (-9, 7)),),
    "cup": (
        ((-8, -7), (-6, 8), (3, 8), (5, -7), (-8, -7)),
        field_arc_points(4.2, -0.5, 4.5, -3, 3),
    ),
    "envelope": (
        ((-10, -6.5), (10, -6.5), (10, 6.5), (-10, 6.5), (-10, -6.5), (0, 1.5), (10, -6.5)),
    ),
    "fir": (
        ((0, -10), (-5, -3), (-2, -3), (-8, 5), (8, 5), (2, -3), (5, -3), (0, -10)),
        ((0, 5), (0, 10)),
    ),
    "fish": (
        (
            (10, -5),
            (5, 0),
            (1, 4),
            (-3, 5),
            (-7, 3.5),
            (-10, 0),
            (-7, -3.5),
            (-3, -5),
            (1, -4),
            (5, 0),
            (10, 5),
        ),
        ((10, -5), (10, 5)),
        ((-6, -1), (-5.7, -1)),
    ),
    "glasses": (
        field_arc_points(-5, 2, 4, 0, 12),
        field_arc_points(5, 2, 4, 0, 12),
        ((-1, 1), (1, 1)),
        ((-9, 1), (-8, -6)),
        ((9, 1), (8, -6)),
    ),
    "heart": (
        (
            (0, 9),
            (-8, 0),
            (-9, -4),
            (-6, -8),
            (-2, -7),
            (0, -4),
            (2, -7),
            (6, -8),
            (9, -4),
            (8, 0),
            (0, 9),
        ),
    ),
    "hourglass": (((-7, -9), (7, -9), (-7, 9), (7, 9), (-7, -9)),),
    "house": (
        ((-9, 0), (0, -9), (9, 0)),
        ((-6.5, -2), (-6.5, 9), (6.5, 9), (6.5, -2)),
        ((0, 9), (0, 3), (3, 3), (3, 9)),
    ),
    "key": (
        field_arc_points(-6, 0, 4, 0, 12),
        ((-2, 0), (10, 0)),
        ((5.5, 0), (5.5, 4)),
        ((9.5, 0), (9.5, 5)),
    ),
    "ladder": (
        ((-4, -10), (-4, 10)),
        ((4, -10), (4, 10)),
        *(((-4, y), (4, y)) for y in (-7, -2.3, 2.3, 7)),
    ),
    "mushroom": (
        ((-9, 0), *field_arc_points(0, 0, 9, 6, 12), (-9, 0)),
        ((-3, 0), (-3.5, 9), (3.5, 9), (3, 0)),
    ),
    "spiral": (
        tuple(
            (0.35 * n * field_clock_point(n)[0], 0.35 * n * field_clock_point(n)[1])
            for n in range(1, 29)
        ),
    ),
    "trident": (((-6, -9), (-6, -3), (-3, 1), (3, 1), (6, -3), (6, -9)), ((0, -10), (0, 10))),
    "umbrella": (
        (
            (-10, 0),
            *field_arc_points(0, 0, 10, 6, 12),
            (6.6, -2),
            (3.3, 0),
            (0, -2),
            (-3.3, 0),
            (-6.6, -2),
            (-10, 0),
        ),
        ((0, -2), *reversed(field_arc_points(2, 7, 2, 0, 6))),
    ),
    "zigzag": (((-10, 4), (-7, -4), (-4, 4), (-1, -4), (2, 4), (5, -4), (8, 4), (10, 0)),),
}
CLASSES: tuple[str, ...] = tuple(_LINES)


def draw_glyph(name: str, key: str) -> Image.Image:
    """Draw a sign.

    Args:
        name: Class of the sign, one of `CLASSES`.
        key: Seed of all random choices.
    """
    draw = Draw("glyphs", name, key)
    paper, ink = contrasting_paints(draw, 70)
    mask = _mark_sign(draw, name)
    canvas = paint_ground(draw, paper, draw.between(0, 30))
    return paint_noise(draw, paint_over(canvas, ink, measure_paint_coverage(mask)))


def _mark_sign(draw: Draw, name: str) -> Mask:
    """Return a mask of the strokes of a sign."""
    radius = draw.between(140, 250) / 10  # pixels
    stretch = draw.between(85, 118) / 100
    slant = draw.between(-25, 25) / 100
    mirrored = draw.one((-1, 1))
    cosine, sine = random_field_turn(draw, 0.14)
    room = SIDE // 2 - 4 - int(radius)
    left = draw.between(-room, room) if room > 0 else 0
    top = draw.between(-room, room) if room > 0 else 0
    width = max(1.4, radius * draw.between(9, 17) / 100)
    wobble: dict[Point, Point] = {}  # lines that share a corner keep sharing it

    def place(point: Point) -> Point:
        if point not in wobble:
            shift_x = draw.between(-_WOBBLE, _WOBBLE) / 10
            wobble[point] = (shift_x, draw.between(-_WOBBLE, _WOBBLE) / 10)
        shift_x, shift_y = wobble[point]
        x, y = point[0] / 10 + shift_x / 10, point[1] / 10 + shift_y / 10
        x, y = mirrored * (x + slant * y) * stretch, y / stretch
        return left + radius * (cosine * x - sine * y), top + radius * (sine * x + cosine * y)

    mask = np.zeros((SIDE * _SAMPLES, SIDE * _SAMPLES), dtype=np.bool_)
    for line in _LINES[name]:
        mark_stroke_in_field(mask, [place(point) for point in line], width, _SAMPLES)
    return mask
