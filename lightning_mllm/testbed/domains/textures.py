"""Textures that fill the picture, named as in the Describable Textures Dataset; none is one of the world's four.

A class is a pattern. Its two colours, which of them is the brighter one, contrast, scale, phase, tilt, quarter turns
and uneven light are random, and say nothing about the class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from lightning_mllm.testbed.domains.brushes import (
    SAMPLES,
    Field,
    Mask,
    coverage,
    finish,
    fraction,
    grid,
    ground,
    hexagons,
    paint,
    ridge,
    smooth,
    soft,
    stroke,
    turn,
    turned,
    two_colors,
    wave,
    window,
)
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE

Pattern = Callable[[Draw, Field, Field], Field | Mask]  # of two coordinates in cells: the share of the second colour


def _blotchy(chance: Draw, u: Field, v: Field) -> Field:
    return soft(smooth(chance, 6, 6)[0] + 0.4 * smooth(chance, 15, 15)[0], 5.0)


def _bricked(chance: Draw, u: Field, v: Field) -> Mask:
    joint = chance.between(12, 20) / 100
    bricks = fraction(u / 2 + 0.5 * np.mod(np.floor(v), 2.0))
    return (fraction(v) < joint) | (bricks < joint / 2)


def _bubbly(chance: Draw, u: Field, v: Field) -> Mask:
    mask = np.zeros(u.shape, dtype=np.bool_)
    columns, rows = grid()
    for _ in range(chance.between(16, 24)):
        radius, thick = chance.between(30, 85) / 10, chance.between(13, 20) / 10
        x, y = (chance.between(-330, 330) / 10 for _ in "xy")
        part = window(x, y, radius)
        across, down = columns[:, part[1]] - x, rows[part[0]] - y
        square = across * across + down * down
        across, down = across + 0.4 * radius, down + 0.4 * radius
        rim = square > (radius - thick) * (radius - thick)
        shine = across * across + down * down < 0.03 * radius * radius
        mask[part] = np.where(square < radius * radius, rim | shine, mask[part])  # the later bubble is in front
    return mask


def _cracked(chance: Draw, u: Field, v: Field) -> Field:
    """Borders between the cells of scattered points: where the nearest two are equally near."""
    u, v = (field[::SAMPLES, ::SAMPLES] * 0.75 + 40 for field in (u, v))  # the ramps are soft enough
    left, top = np.floor(u), np.floor(v)
    column, row = left.astype(np.int64), top.astype(np.int64)
    dice = chance.noise(80, 80, 450) / 1000
    first, second = np.full(u.shape, 9.0), np.full(u.shape, 9.0)
    across, down = u - left - 0.5, v - top - 0.5
    for right in (-1, 0, 1):
        for below in (-1, 0, 1):
            place = (row + below, column + right)
            x, y = dice[..., 0][place] + (right - across), dice[..., 1][place] + (below - down)
            square = x * x + y * y
            second = np.minimum(second, np.maximum(first, square))
            first = np.minimum(first, square)
    return soft(chance.between(12, 20) / 100 - (second - first), 8.0)


def _crosshatched(chance: Draw, u: Field, v: Field) -> Mask:
    lines: Mask = np.zeros(u.shape, dtype=np.bool_)
    wide = chance.between(25, 36) / 100
    for side, broken in zip((-1, 1), smooth(chance, 9, 9, fields=2), strict=True):
        lines |= (fraction(1.9 * (u + side * 0.7 * v)) < wide) & (broken > -0.35)
    return lines


def _grained(chance: Draw, u: Field, v: Field) -> Field:
    bend, fibre = smooth(chance, 3, 3)[0], smooth(chance, 42, 5)[0]
    levels: Field = np.clip(fraction(v * 0.7 + 1.3 * bend + 0.25 * u) * 0.75 + 0.45 * fibre, 0.0, 1.0)
    return levels


def _gridded(chance: Draw, u: Field, v: Field) -> Mask:
    wide = chance.between(15, 26) / 100
    return (fraction(u) < wide) | (fraction(v) < wide)


def _honeycombed(chance: Draw, u: Field, v: Field) -> Mask:
    return hexagons(u, v) > 0.5 - chance.between(8, 12) / 100


def _knitted(chance: Draw, u: Field, v: Field) -> Field:
    aside = abs(fraction(u) - 0.5)  # 0 in the middle of a column of stitches
    leg = 1.6 * ridge(1.5 * v + 1.1 * aside) - 0.45
    gap = np.minimum(aside, 0.5 - aside)
    return soft(np.minimum(leg, 9 * gap - 0.7), 2.0)


def _marbled(chance: Draw, u: Field, v: Field) -> Field:
    bend, detail = smooth(chance, 4, 4)[0], smooth(chance, 11, 11)[0]
    return soft(0.22 - abs(wave(0.16 * u + 0.22 * v + 0.9 * bend + 0.22 * detail)), 3.5)


def _pleated(chance: Draw, u: Field, v: Field) -> Field:
    return fraction(0.8 * v + 0.15 * smooth(chance, 2, 2)[0])


def _rippled(chance: Draw, u: Field, v: Field) -> Field:
    x, y = (chance.between(-20, 20) / 10 for _ in "xy")
    distance = np.sqrt((u - x) * (u - x) + (v - y) * (v - y))  # exactly rounded, as a quotient is
    return soft(wave(0.9 * distance), 0.8)


def _scaly(chance: Draw, u: Field, v: Field) -> Field:
    level = np.zeros(u.shape)
    edge = chance.between(16, 24) / 100
    for step in (2, 1, 0):  # a scale covers those of the row below it
        row = np.floor(v * 2) - step + 1
        across = fraction(u + 0.5 * np.mod(row, 2.0)) - 0.5
        down = v - row / 2 + 0.15
        square = (across * across + down * down) / 0.3
        scale = np.where(square > 1 - 1.6 * edge, 1.0, 0.3 * square)
        level = np.where((square < 1) & (down > 0), scale, level)
    return level


def _sprinkled(chance: Draw, u: Field, v: Field) -> Mask:
    mask = np.zeros(u.shape, dtype=np.bool_)
    wide = chance.between(15, 23) / 10
    for _ in range(chance.between(28, 40)):
        x, y = (chance.between(-320, 320) / 10 for _ in "xy")
        cosine, sine = turn(chance, 1.0)
        reach = chance.between(20, 32) / 10
        stroke(mask, [(x - reach * cosine, y - reach * sine), (x + reach * cosine, y + reach * sine)], wide)
    return mask


def _stratified(chance: Draw, u: Field, v: Field) -> Field:
    shades: Field = np.array(chance.shuffled(range(16))) / 15
    depth = 1.6 * (v + 0.7 * smooth(chance, 2, 5)[0]) + 40
    layer = np.floor(depth + 0.9 * wave(depth / 2.7)).astype(np.int64)
    levels: Field = shades[layer % 16]
    return levels


def _wavy(chance: Draw, u: Field, v: Field) -> Field:
    tall = chance.between(28, 42) / 100
    return soft(wave(v * 0.9 + tall * wave(u / 2.6)), 1.2)


def _woven(chance: Draw, u: Field, v: Field) -> Field:
    over = np.mod(np.floor(0.7 * u) + np.floor(0.7 * v), 2.0) < 1
    along, across = np.where(over, u, v) * 0.7, np.where(over, v, u) * 0.7
    ends = ridge(along)  # 1 at the ends of a piece that lies on top
    return np.clip(1.9 - 2.2 * ridge(2 * across) - 0.8 * ends * ends, 0.0, 1.0)


def _zigzagged(chance: Draw, u: Field, v: Field) -> Mask:
    return fraction(v * 0.9 + 0.9 * ridge(u / 2)) < 0.5


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


def draw(name: str, key: str) -> Image.Image:
    """Draw a texture.

    Args:
        name: One of `CLASSES`.
        key: Seeds all that is random.
    """
    chance = Draw("textures", name, key)
    size = chance.between(75, 120) / 10  # pixels per cell
    phase = (chance.between(-100, 100) / 10, chance.between(-100, 100) / 10)
    u, v = turned(turn(chance, 0.16), phase, size)
    levels = np.rot90(_PATTERNS[name](chance, u, v), chance.below(4)).astype(np.float64)
    levels = soft(levels - 0.5, chance.between(10, 30) / 10)  # ramps become steeper: no class has all the mixed colours
    first, second = two_colors(chance, 60)
    canvas = paint(ground(chance, first, chance.between(0, 25)), second, coverage(levels))
    stain = smooth(chance, 3, 3, fields=3, side=SIDE) * chance.between(10, 50)  # hides how much of each colour there is
    return finish(chance, canvas + stain.astype(np.int64).transpose(1, 2, 0))
