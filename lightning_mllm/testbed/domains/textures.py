"""Textures that fill the picture, named as in the Describable Textures Dataset.

None of them is one of the world's four textures. A class is a pattern. Its two colours, which of
them is brighter, contrast, scale, phase, tilt, quarter turns and uneven light are random, and tell
nothing about the class.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from PIL import Image

from lightning_mllm.testbed.domains.fields import (
    SAMPLES,
    Field,
    Mask,
    field_grid,
    field_slices_around,
    fractional_field,
    hexagon_field,
    mark_stroke_in_field,
    parabola_wave_field,
    random_field_turn,
    smooth_noise_field,
    soft_step_field,
    turned_field_grid,
    zigzag_wave_field,
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

# Random choices, two coordinates in cells -> the share of the second colour.
Pattern = Callable[[Draw, Field, Field], Field | Mask]


def _blotchy(draw: Draw, u: Field, v: Field) -> Field:
    return soft_step_field(
        smooth_noise_field(draw, 6, 6)[0] + 0.4 * smooth_noise_field(draw, 15, 15)[0], 5.0
    )


def _bricked(draw: Draw, u: Field, v: Field) -> Mask:
    joint = draw.between(12, 20) / 100
    bricks = fractional_field(u / 2 + 0.5 * np.mod(np.floor(v), 2.0))
    return (fractional_field(v) < joint) | (bricks < joint / 2)


def _bubbly(draw: Draw, u: Field, v: Field) -> Mask:
    mask = np.zeros(u.shape, dtype=np.bool_)
    columns, rows = field_grid()
    for _ in range(draw.between(16, 24)):
        radius, thick = draw.between(30, 85) / 10, draw.between(13, 20) / 10
        x, y = draw.between(-330, 330) / 10, draw.between(-330, 330) / 10
        part = field_slices_around(x, y, radius)
        across, down = columns[:, part[1]] - x, rows[part[0]] - y
        square = across * across + down * down
        across, down = across + 0.4 * radius, down + 0.4 * radius
        rim = square > (radius - thick) * (radius - thick)
        shine = across * across + down * down < 0.03 * radius * radius
        # a later bubble is in front of an earlier one
        mask[part] = np.where(square < radius * radius, rim | shine, mask[part])
    return mask


def _cracked(draw: Draw, u: Field, v: Field) -> Field:
    """Return the borders between cells of scattered points: where two points are equally near."""
    u = u[::SAMPLES, ::SAMPLES] * 0.75 + 40  # one sample per pixel: the edges are soft
    v = v[::SAMPLES, ::SAMPLES] * 0.75 + 40
    left, top = np.floor(u), np.floor(v)
    column, row = left.astype(np.int64), top.astype(np.int64)
    dice = draw.noise(80, 80, 450) / 1000
    shift_x, shift_y = dice[..., 0], dice[..., 1]
    first, second = np.full(u.shape, 9.0), np.full(u.shape, 9.0)
    across, down = u - left - 0.5, v - top - 0.5
    for right, below in product((-1, 0, 1), (-1, 0, 1)):
        place = (row + below, column + right)
        x, y = shift_x[place] + (right - across), shift_y[place] + (below - down)
        square = x * x + y * y
        second = np.minimum(second, np.maximum(first, square))
        first = np.minimum(first, square)
    return soft_step_field(draw.between(12, 20) / 100 - (second - first), 8.0)


def _crosshatched(draw: Draw, u: Field, v: Field) -> Mask:
    lines: Mask = np.zeros(u.shape, dtype=np.bool_)
    wide = draw.between(25, 36) / 100
    for side, broken in zip((-1, 1), smooth_noise_field(draw, 9, 9, fields=2), strict=True):
        lines |= (fractional_field(1.9 * (u + side * 0.7 * v)) < wide) & (broken > -0.35)
    return lines


def _grained(draw: Draw, u: Field, v: Field) -> Field:
    bend, fibre = smooth_noise_field(draw, 3, 3)[0], smooth_noise_field(draw, 42, 5)[0]
    rings = fractional_field(v * 0.7 + 1.3 * bend + 0.25 * u)
    levels: Field = np.clip(rings * 0.75 + 0.45 * fibre, 0.0, 1.0)
    return levels


def _gridded(draw: Draw, u: Field, v: Field) -> Mask:
    wide = draw.between(15, 26) / 100
    return (fractional_field(u) < wide) | (fractional_field(v) < wide)


def _honeycombed(draw: Draw, u: Field, v: Field) -> Mask:
    return hexagon_field(u, v) > 0.5 - draw.between(8, 12) / 100


def _knitted(draw: Draw, u: Field, v: Field) -> Field:
    aside = abs(fractional_field(u) - 0.5)  # 0 in the middle of a column of stitches
    leg = 1.6 * zigzag_wave_field(1.5 * v + 1.1 * aside) - 0.45
    gap = np.minimum(aside, 0.5 - aside)
    return soft_step_field(np.minimum(leg, 9 * gap - 0.7), 2.0)


def _marbled(draw: Draw, u: Field, v: Field) -> Field:
    bend, detail = smooth_noise_field(draw, 4, 4)[0], smooth_noise_field(draw, 11, 11)[0]
    bands = parabola_wave_field(0.16 * u + 0.22 * v + 0.9 * bend + 0.22 * detail)
    return soft_step_field(0.22 - abs(bands), 3.5)


def _pleated(draw: Draw, u: Field, v: Field) -> Field:
    return fractional_field(0.8 * v + 0.15 * smooth_noise_field(draw, 2, 2)[0])


def _rippled(draw: Draw, u: Field, v: Field) -> Field:
    x, y = draw.between(-20, 20) / 10, draw.between(-20, 20) / 10
    distance = np.sqrt((u - x) * (u - x) + (v - y) * (v - y))  # exactly rounded, like a quotient
    return soft_step_field(parabola_wave_field(0.9 * distance), 0.8)


def _scaly(draw: Draw, u: Field, v: Field) -> Field:
    level = np.zeros(u.shape)
    edge = draw.between(16, 24) / 100
    for step in (2, 1, 0):  # a scale covers the scales of the row below it
        row = np.floor(v * 2) - step + 1
        across = fractional_field(u + 0.5 * np.mod(row, 2.0)) - 0.5
        down = v - row / 2 + 0.15
        square = (across * across + down * down) / 0.3
        scale = np.where(square > 1 - 1.6 * edge, 1.0, 0.3 * square)
        level = np.where((square < 1) & (down > 0), scale, level)
    return level


def _sprinkled(draw: Draw, u: Field, v: Field) -> Mask:
    mask = np.zeros(u.shape, dtype=np.bool_)
    wide = draw.between(15, 23) / 10
    for _ in range(draw.between(28, 40)):
        x, y = draw.between(-320, 320) / 10, draw.between(-320, 320) / 10
        cosine, sine = random_field_turn(draw, 1.0)
        reach = draw.between(20, 32) / 10
        across, down = reach * cosine, reach * sine
        mark_stroke_in_field(mask, [(x - across, y - down), (x + across, y + down)], wide)
    return mask


def _stratified(draw: Draw, u: Field, v: Field) -> Field:
    shades: Field = np.array(draw.shuffled(range(16))) / 15
    depth = 1.6 * (v + 0.7 * smooth_noise_field(draw, 2, 5)[0]) + 40
    layer = np.floor(depth + 0.9 * parabola_wave_field(depth / 2.7)).astype(np.int64)
    levels: Field = shades[layer % 16]
    return levels


def _wavy(draw: Draw, u: Field, v: Field) -> Field:
    tall = draw.between(28, 42) / 100
    return soft_step_field(parabola_wave_field(v * 0.9 + tall * parabola_wave_field(u / 2.6)), 1.2)


def _woven(draw: Draw, u: Field, v: Field) -> Field:
    over = np.mod(np.floor(0.7 * u) + np.floor(0.7 * v), 2.0) < 1
    along, across = np.where(over, u, v) * 0.7, np.where(over, v, u) * 0.7
    ends = zigzag_wave_field(along)  # 1 at the ends of a piece on top
    return np.clip(1.9 - 2.2 * zigzag_wave_field(2 * across) - 0.8 * ends * ends, 0.0, 1.0)


def _zigzagged(draw: Draw, u: Field, v: Field) -> Mask:
    return fractional_field(v * 0.9 + 0.9 * zigzag_wave_field(u / 2)) < 0.5


_PATTERNS: dict[str, Pattern] = {
    "blotchy": _blotchy,
    "bricked": _bricked,
    "bubbly": _bubbly,
    "cracked": _cracked,
    "crosshatched": _crosshatched,
    "grained": _grained,
    "gridded": _gridded,
    "honeycombed": _honeycombed,
    "knitted": _knitted,
    "marbled": _marbled,
    "pleated": _pleated,
    "rippled": _rippled,
    "scaly": _scaly,
    "sprinkled": _sprinkled,
    "stratified": _stratified,
    "wavy": _wavy,
    "woven": _woven,
    "zigzagged": _zigzagged,
}
CLASSES: tuple[str, ...] = tuple(_PATTERNS)


def draw_texture(name: str, key: str) -> Image.Image:
    """Draw a texture.

    Args:
        name: Class of the texture, one of `CLASSES`.
        key: Seed of all random choices.
    """
    draw = Draw("textures", name, key)
    size = draw.between(75, 120) / 10  # pixels per cell
    phase = (draw.between(-100, 100) / 10, draw.between(-100, 100) / 10)
    u, v = turned_field_grid(random_field_turn(draw, 0.16), phase, size)
    levels = np.rot90(_PATTERNS[name](draw, u, v), draw.below(4)).astype(np.float64)
    # steeper ramps: else mixed colours would tell some classes
    levels = soft_step_field(levels - 0.5, draw.between(10, 30) / 10)
    first, second = contrasting_paints(draw, 60)
    ground = paint_ground(draw, first, draw.between(0, 25))
    canvas = paint_over(ground, second, measure_paint_coverage(levels))
    # stains hide how much of each colour there is
    stain = smooth_noise_field(draw, 3, 3, fields=3, side=SIDE) * draw.between(10, 50)
    return paint_noise(draw, canvas + stain.astype(np.int64).transpose(1, 2, 0))
