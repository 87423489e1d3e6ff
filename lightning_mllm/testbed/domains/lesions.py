"""Lesions on skin, under a dermatoscope: the hard domain.

A class is a kind and a structure. The kind combines asymmetry, an irregular border and several colours; the structure
is what the inside shows. Skin, pigment, place, size, turn, hairs and light are random, and say nothing about the class.
The names only lend the looks of what dermatologists call so: no picture is of medical use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lightning_mllm.testbed.domains.brushes import (
    SAMPLES,
    Canvas,
    Color,
    Field,
    coverage,
    finish,
    ground,
    hexagons,
    paint,
    ridge,
    smooth,
    soft,
    specks,
    stroke,
    turn,
    turned,
)
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE


@dataclass(frozen=True)
class Kind:
    """What a kind of lesion has of the three signs."""

    asymmetric: bool = False
    irregular: bool = False
    variegated: bool = False


@dataclass(frozen=True)
class Blob:
    """A lesion on the canvas; fields are of pixels, (n, n): all edges are soft.

    Attributes:
        x: Along its longer axis, in pixels from its centre.
        y: Along the shorter one.
        depth: 0 at the border and 1 in the middle; negative outside.
    """

    x: Field
    y: Field
    depth: Field


KINDS = {
    "nevus": Kind(),
    "lentigo": Kind(irregular=True),
    "dysplasia": Kind(asymmetric=True),
    "keratosis": Kind(variegated=True),
    "melanoma": Kind(asymmetric=True, irregular=True, variegated=True),
}


def _network(chance: Draw, blob: Blob) -> Field:
    """A mesh of pigment that fades towards the border."""
    cell = chance.between(50, 62) / 10
    bend = 0.25 * smooth(chance, 9, 9, fields=2, side=SIDE)
    mesh = hexagons(blob.x / cell + bend[0], blob.y / cell + bend[1]) - 0.36
    return soft(mesh, 12.0) * soft(blob.depth - 0.1, 4.0)


def _globules(chance: Draw, blob: Blob) -> Field:
    """Round clods."""
    cell = chance.between(48, 62) / 10
    return specks(chance, blob.x / cell, blob.y / cell, (0.26, 0.38), 85) * soft(blob.depth - 0.08, 8.0)


def _streaks(chance: Draw, blob: Blob) -> Field:
    """Rays at the border, which they cross; an angle is measured along the sides of a square."""
    size = np.maximum(abs(blob.x) + abs(blob.y), 1e-9)
    around = np.where(blob.y < 0, 2 + blob.x / size, -blob.x / size)  # 4 are a whole turn
    rays = ridge(around * chance.between(4, 5)) + 0.25 * _rough(chance, 8)
    return soft(0.5 - rays, 4.0) * soft(blob.depth + 0.3, 7.0) * soft(0.45 - blob.depth, 7.0)


STRUCTURES: dict[str, Callable[[Draw, Blob], Field] | None] = {
    "homogeneous": None,
    "reticular": _network,
    "globular": _globules,
    "streaked": _streaks,
}
_PARTS = {f"{structure} {kind}": (structure, kind) for kind in KINDS for structure in STRUCTURES}
CLASSES: tuple[str, ...] = tuple(_PARTS)


def draw(name: str, key: str) -> Image.Image:
    """Draw a lesion.

    Args:
        name: One of `CLASSES`.
        key: Seeds all that is random.
    """
    structure, kind = _PARTS[name]
    chance = Draw("lesions", name, key)
    blob = _blob(chance, KINDS[kind])
    skin, pigment = _skin(chance), chance.between(62, 84)  # percent of the skin's light that is left
    canvas = ground(chance, skin, chance.between(5, 25)) + ground(chance, (0, 0, 0), chance.between(5, 20), cells=21)
    inside = coverage(soft(blob.depth, 5.0))
    canvas = paint(canvas, _pigment(chance, canvas, pigment, KINDS[kind]), inside)
    marks = STRUCTURES[structure]
    if marks is not None:
        dark = canvas * chance.between(66, 84) // 100
        seen = soft(_rough(chance, 3) + 0.35, 3.0)  # hardly ever all over the lesion
        canvas = paint(canvas, dark, coverage(marks(chance, blob) * seen))
    return finish(chance, _hairs(chance, canvas))


def _blob(chance: Draw, kind: Kind) -> Blob:
    radius, slender = chance.between(130, 215) / 10, chance.between(100, 135) / 100
    center = (chance.between(-60, 60) / 10, chance.between(-60, 60) / 10)
    angle = turn(chance, 1.0)
    x, y = turned(angle if chance.happens(0.5) else (-angle[0], -angle[1]), center, samples=1)
    along, across = x / radius, y * (slender / radius)
    depth = _lobed(chance, along, across) if kind.asymmetric else 1 - (along * along + across * across)
    if kind.irregular:
        depth = depth + 0.36 * _rough(chance, 13) + 0.24 * _rough(chance, 7)
    return Blob(x, y, depth + 0.16 * _rough(chance, 4) + 0.12 * _rough(chance, 10))


def _lobed(chance: Draw, along: Field, across: Field) -> Field:
    """Return the depth of a lesion with a smaller one grown to its side."""
    side, reach = chance.one((-1, 1)), chance.between(52, 64) / 100
    near_x, near_y = along + 0.22, across + 0.15 * side
    far_x, far_y = along - chance.between(42, 56) / 100, across - chance.between(28, 44) / 100 * side
    body = 1 - (near_x * near_x + near_y * near_y) / 0.68
    lobe = 1 - (far_x * far_x + far_y * far_y) / (reach * reach)
    depth: Field = np.maximum(body, lobe)
    return depth


def _rough(chance: Draw, cells: int) -> Field:
    noise: Field = smooth(chance, cells, cells, side=SIDE)[0]
    return noise


def _skin(chance: Draw) -> Color:
    light = chance.between(125, 235)
    return light, light * chance.between(70, 84) // 100, light * chance.between(52, 72) // 100


def _pigment(chance: Draw, skin: Canvas, left: int, kind: Kind) -> Canvas:
    """Return the skin with pigment in it: one colour, or patches of three."""
    tint = np.array([100, chance.between(78, 92), chance.between(62, 86)])
    brown: Canvas = skin * left * tint // 10_000
    if not kind.variegated:
        return brown
    first, second = smooth(chance, 5, 5, fields=2, side=SIDE)
    blue = np.array([chance.between(78, 98), chance.between(82, 102), chance.between(100, 125)]) * skin[..., :1] // 190
    red = skin * np.array([chance.between(82, 96), chance.between(54, 68), chance.between(54, 68)]) // 100
    strength = chance.between(35, 65)  # percent
    patched = paint(brown, red, coverage(soft(first - 0.2, 4.0)) * strength // 100)
    return paint(patched, blue, coverage(soft(second - 0.2, 4.0)) * strength // 100)


def _hairs(chance: Draw, canvas: Canvas) -> Canvas:
    mask = np.zeros((SIDE * SAMPLES, SIDE * SAMPLES), dtype=np.bool_)
    for _ in range(chance.below(4)):
        x, y = (chance.between(-30, 30) for _ in "xy")
        step_x, step_y = (chance.between(-14, 14) for _ in "xy")
        bend = chance.between(-3, 3)
        points = [(x + n * step_x + n * n * bend, y + n * step_y - n * n * bend / 2) for n in range(-2, 3)]
        stroke(mask, points, chance.between(7, 11) / 10)
    return paint(canvas, (35, 28, 25), coverage(mask) * 3 // 4)
