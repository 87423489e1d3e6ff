"""Lesions on skin, under a dermatoscope: the hard domain.

A class is a kind and a structure. The kind combines asymmetry, an irregular border and several
colours; the structure is what the inside shows. Skin, pigment, place, size, turn, hairs and light
are random, and tell nothing about the class. The pictures only resemble what dermatologists call by
these names; they are of no medical use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

from lightning_mllm.testbed.domains.fields import (
    SAMPLES,
    Field,
    hexagon_field,
    mark_stroke_in_field,
    random_field_turn,
    smooth_noise_field,
    soft_step_field,
    speckled_field,
    turned_field_grid,
    zigzag_wave_field,
)
from lightning_mllm.testbed.domains.painting import (
    Canvas,
    Color,
    measure_paint_coverage,
    paint_ground,
    paint_noise,
    paint_over,
)
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE


@dataclass(frozen=True)
class LesionKind:
    """Which of the three signs a kind of lesion has."""

    asymmetric: bool = False
    irregular: bool = False
    variegated: bool = False


@dataclass(frozen=True)
class LesionBlob:
    """A lesion on the canvas; fields have one value per pixel, (n, n), since all edges are soft.

    Attributes:
        x: Coordinate along its longer axis, in pixels from its centre.
        y: Coordinate along its shorter axis, in pixels from its centre.
        depth: From 0 at the border to 1 in the middle; negative outside.
    """

    x: Field
    y: Field
    depth: Field


KINDS = {
    "nevus": LesionKind(),
    "lentigo": LesionKind(irregular=True),
    "dysplasia": LesionKind(asymmetric=True),
    "keratosis": LesionKind(variegated=True),
    "melanoma": LesionKind(asymmetric=True, irregular=True, variegated=True),
}


def _draw_network(draw: Draw, blob: LesionBlob) -> Field:
    """Return a mesh of pigment that fades towards the border."""
    cell = draw.between(50, 62) / 10
    bend = 0.25 * smooth_noise_field(draw, 9, 9, fields=2, side=SIDE)
    mesh = hexagon_field(blob.x / cell + bend[0], blob.y / cell + bend[1]) - 0.36
    return soft_step_field(mesh, 12.0) * soft_step_field(blob.depth - 0.1, 4.0)


def _draw_globules(draw: Draw, blob: LesionBlob) -> Field:
    """Return round clods."""
    cell = draw.between(48, 62) / 10
    clods = speckled_field(draw, blob.x / cell, blob.y / cell, (0.26, 0.38), 85)
    return clods * soft_step_field(blob.depth - 0.08, 8.0)


def _draw_streaks(draw: Draw, blob: LesionBlob) -> Field:
    """Return rays that cross the border; angles are measured along the sides of a square."""
    size = np.maximum(abs(blob.x) + abs(blob.y), 1e-9)
    around = np.where(blob.y < 0, 2 + blob.x / size, -blob.x / size)  # a whole turn is 4
    rays = zigzag_wave_field(around * draw.between(4, 5)) + 0.25 * _draw_roughness(draw, 8)
    outer, inner = soft_step_field(blob.depth + 0.3, 7.0), soft_step_field(0.45 - blob.depth, 7.0)
    return soft_step_field(0.5 - rays, 4.0) * outer * inner


STRUCTURES: dict[str, Callable[[Draw, LesionBlob], Field] | None] = {
    "homogeneous": None,
    "reticular": _draw_network,
    "globular": _draw_globules,
    "streaked": _draw_streaks,
}
_PARTS = {
    f"{structure} {kind}": (structure, kind) for kind, structure in product(KINDS, STRUCTURES)
}
CLASSES: tuple[str, ...] = tuple(_PARTS)


def draw_lesion(name: str, key: str) -> Image.Image:
    """Draw a lesion.

    Args:
        name: Class of the lesion, one of `CLASSES`.
        key: Seed of all random choices.
    """
    structure, kind = _PARTS[name]
    draw = Draw("lesions", name, key)
    blob = _shape_blob(draw, KINDS[kind])
    skin, pigment = _choose_skin(draw), draw.between(62, 84)  # percent of the skin's light left
    canvas = paint_ground(draw, skin, draw.between(5, 25))
    canvas = canvas + paint_ground(draw, (0, 0, 0), draw.between(5, 20), cells=21)
    inside = measure_paint_coverage(soft_step_field(blob.depth, 5.0))
    canvas = paint_over(canvas, _draw_pigment(draw, canvas, pigment, KINDS[kind]), inside)
    draw_marks = STRUCTURES[structure]
    if draw_marks is not None:
        dark = canvas * draw.between(66, 84) // 100
        visible = soft_step_field(
            _draw_roughness(draw, 3) + 0.35, 3.0
        )  # rarely all over the lesion
        canvas = paint_over(canvas, dark, measure_paint_coverage(draw_marks(draw, blob) * visible))
    return paint_noise(draw, _draw_hairs(draw, canvas))


def _shape_blob(draw: Draw, kind: LesionKind) -> LesionBlob:
    """Return a lesion of a kind at a random place, with a random turn."""
    radius, slender = draw.between(130, 215) / 10, draw.between(100, 135) / 100
    center = (draw.between(-60, 60) / 10, draw.between(-60, 60) / 10)
    angle = random_field_turn(draw, 1.0)
    angle = angle if draw.happens(0.5) else (-angle[0], -angle[1])
    x, y = turned_field_grid(angle, center, samples=1)
    along, across = x / radius, y * (slender / radius)
    if kind.asymmetric:
        depth = _shape_lobes(draw, along, across)
    else:
        depth = 1 - (along * along + across * across)
    if kind.irregular:
        depth = depth + 0.36 * _draw_roughness(draw, 13) + 0.24 * _draw_roughness(draw, 7)
    depth = depth + 0.16 * _draw_roughness(draw, 4) + 0.12 * _draw_roughness(draw, 10)
    return LesionBlob(x, y, depth)


def _shape_lobes(draw: Draw, along: Field, across: Field) -> Field:
    """Return the depth of a lesion with a smaller lobe at its side."""
    side, reach = draw.one((-1, 1)), draw.between(52, 64) / 100
    near_x, near_y = along + 0.22, across + 0.15 * side
    far_x, far_y = along - draw.between(42, 56) / 100, across - draw.between(28, 44) / 100 * side
    body = 1 - (near_x * near_x + near_y * near_y) / 0.68
    lobe = 1 - (far_x * far_x + far_y * far_y) / (reach * reach)
    depth: Field = np.maximum(body, lobe)
    return depth


def _draw_roughness(draw: Draw, cells: int) -> Field:
    noise: Field = smooth_noise_field(draw, cells, cells, side=SIDE)[0]
    return noise


def _choose_skin(draw: Draw) -> Color:
    light = draw.between(125, 235)
    return light, light * draw.between(70, 84) // 100, light * draw.between(52, 72) // 100


def _draw_pigment(draw: Draw, skin: Canvas, left: int, kind: LesionKind) -> Canvas:
    """Return the skin with pigment in it: of one colour, or in patches of three.

    Args:
        draw: Random choices, here of the colours.
        skin: Canvas of the skin.
        left: Percentage of the skin's light that is left.
        kind: Kind of the lesion.
    """
    tint = np.array([100, draw.between(78, 92), draw.between(62, 86)])
    brown: Canvas = skin * left * tint // 10_000
    if not kind.variegated:
        return brown
    first, second = smooth_noise_field(draw, 5, 5, fields=2, side=SIDE)
    blue_tint = np.array([draw.between(78, 98), draw.between(82, 102), draw.between(100, 125)])
    blue = blue_tint * skin[..., :1] // 190
    red_tint = np.array([draw.between(82, 96), draw.between(54, 68), draw.between(54, 68)])
    red = skin * red_tint // 100
    strength = draw.between(35, 65)  # percent
    red_cover = measure_paint_coverage(soft_step_field(first - 0.2, 4.0)) * strength // 100
    blue_cover = measure_paint_coverage(soft_step_field(second - 0.2, 4.0)) * strength // 100
    return paint_over(paint_over(brown, red, red_cover), blue, blue_cover)


def _draw_hairs(draw: Draw, canvas: Canvas) -> Canvas:
    mask = np.zeros((SIDE * SAMPLES, SIDE * SAMPLES), dtype=np.bool_)
    for _ in range(draw.below(4)):
        x, y = draw.between(-30, 30), draw.between(-30, 30)
        step_x, step_y = draw.between(-14, 14), draw.between(-14, 14)
        bend = draw.between(-3, 3)
        points = []
        for n in range(-2, 3):
            points.append((x + n * step_x + n * n * bend, y + n * step_y - n * n * bend / 2))
        mark_stroke_in_field(mask, points, draw.between(7, 11) / 10)
    return paint_over(canvas, (35, 28, 25), measure_paint_coverage(mask) * 3 // 4)
