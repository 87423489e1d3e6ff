"""Signs of a few strokes: the easy domain.

A class is a shape that no scene of the world has. Place, size, colours, width of the strokes, slant and mirroring are
random, and say nothing about the class.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from lightning_mllm.testbed.domains.brushes import (
    Mask,
    Point,
    arc,
    coverage,
    finish,
    ground,
    hour,
    paint,
    stroke,
    turn,
    two_colors,
)
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE

_SAMPLES = 4  # per pixel and direction: strokes are thin
_WOBBLE = 6  # most displacement of a corner, in tenths of its unit

Line = tuple[Point, ...]

_LINES: dict[str, tuple[Line, ...]] = {  # corners, x to the right and y down, -10 to 10
    "anchor": (
        arc(0, -7.5, 2.5, 0, 12),
        ((0, -5), (0, 9)),
        ((-4, -2.5), (4, -2.5)),
        ((9, -1), *arc(0, 1, 8, 0, 6), (-9, -1)),
    ),
    "arrow": (((-10, 0), (10, 0)), ((3, -7), (10, 0), (3, 7))),
    "bolt": (((3, -10), (-6, 2), (0, 2), (-3, 10), (6, -2), (0, -2), (3, -10)),),
    "comb": (((-9, -6), (9, -6)), *(((x, -6), (x, 6)) for x in (-9, -4.5, 0, 4.5, 9))),
    "crown": (((-9, 7), (-9, -6), (-4, 1), (0, -8), (4, 1), (9, -6), (9, 7), (-9, 7)),),
    "cup": (((-8, -7), (-6, 8), (3, 8), (5, -7), (-8, -7)), arc(4.2, -0.5, 4.5, -3, 3)),
    "envelope": (((-10, -6.5), (10, -6.5), (10, 6.5), (-10, 6.5), (-10, -6.5), (0, 1.5), (10, -6.5)),),
    "fir": (((0, -10), (-5, -3), (-2, -3), (-8, 5), (8, 5), (2, -3), (5, -3), (0, -10)), ((0, 5), (0, 10))),
    "fish": (
        ((10, -5), (5, 0), (1, 4), (-3, 5), (-7, 3.5), (-10, 0), (-7, -3.5), (-3, -5), (1, -4), (5, 0), (10, 5)),
        ((10, -5), (10, 5)),
        ((-6, -1), (-5.7, -1)),
    ),
    "glasses": (arc(-5, 2, 4, 0, 12), arc(5, 2, 4, 0, 12), ((-1, 1), (1, 1)), ((-9, 1), (-8, -6)), ((9, 1), (8, -6))),
    "heart": (((0, 9), (-8, 0), (-9, -4), (-6, -8), (-2, -7), (0, -4), (2, -7), (6, -8), (9, -4), (8, 0), (0, 9)),),
    "hourglass": (((-7, -9), (7, -9), (-7, 9), (7, 9), (-7, -9)),),
    "house": (
        ((-9, 0), (0, -9), (9, 0)),
        ((-6.5, -2), (-6.5, 9), (6.5, 9), (6.5, -2)),
        ((0, 9), (0, 3), (3, 3), (3, 9)),
    ),
    "key": (arc(-6, 0, 4, 0, 12), ((-2, 0), (10, 0)), ((5.5, 0), (5.5, 4)), ((9.5, 0), (9.5, 5))),
    "ladder": (((-4, -10), (-4, 10)), ((4, -10), (4, 10)), *(((-4, y), (4, y)) for y in (-7, -2.3, 2.3, 7))),
    "mushroom": (((-9, 0), *arc(0, 0, 9, 6, 12), (-9, 0)), ((-3, 0), (-3.5, 9), (3.5, 9), (3, 0))),
    "spiral": (tuple((0.35 * n * hour(n)[0], 0.35 * n * hour(n)[1]) for n in range(1, 29)),),
    "trident": (((-6, -9), (-6, -3), (-3, 1), (3, 1), (6, -3), (6, -9)), ((0, -10), (0, 10))),
    "umbrella": (
        ((-10, 0), *arc(0, 0, 10, 6, 12), (6.6, -2), (3.3, 0), (0, -2), (-3.3, 0), (-6.6, -2), (-10, 0)),
        ((0, -2), *reversed(arc(2, 7, 2, 0, 6))),
    ),
    "zigzag": (((-10, 4), (-7, -4), (-4, 4), (-1, -4), (2, 4), (5, -4), (8, 4), (10, 0)),),
}
CLASSES: tuple[str, ...] = tuple(_LINES)


def draw(name: str, key: str) -> Image.Image:
    """Draw a sign.

    Args:
        name: One of `CLASSES`.
        key: Seeds all that is random.
    """
    chance = Draw("glyphs", name, key)
    below, ink = two_colors(chance, 70)
    mask = _mask(chance, name)
    canvas = ground(chance, below, chance.between(0, 30))
    return finish(chance, paint(canvas, ink, coverage(mask)))


def _mask(chance: Draw, name: str) -> Mask:
    """Mark the strokes of a sign."""
    radius = chance.between(140, 250) / 10  # pixels
    stretch = chance.between(85, 118) / 100
    slant = chance.between(-25, 25) / 100
    mirrored = chance.one((-1, 1))
    cosine, sine = turn(chance, 0.14)
    room = SIDE // 2 - 4 - int(radius)
    left, top = (chance.between(-room, room) if room > 0 else 0 for _ in "xy")
    width = max(1.4, radius * chance.between(9, 17) / 100)
    wobble: dict[Point, Point] = {}  # lines that share a corner keep sharing it

    def placed(point: Point) -> Point:
        if point not in wobble:
            wobble[point] = tuple(chance.between(-_WOBBLE, _WOBBLE) / 10 for _ in "xy")  # type: ignore[assignment]
        x, y = (value / 10 + shift / 10 for value, shift in zip(point, wobble[point], strict=True))
        x, y = mirrored * (x + slant * y) * stretch, y / stretch
        return left + radius * (cosine * x - sine * y), top + radius * (sine * x + cosine * y)

    mask = np.zeros((SIDE * _SAMPLES, SIDE * _SAMPLES), dtype=np.bool_)
    for line in _LINES[name]:
        stroke(mask, [placed(point) for point in line], width, _SAMPLES)
    return mask
