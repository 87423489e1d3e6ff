"""Leaves of five plants, healthy or with one of four diseases: between easy and hard.

A class is a plant (outline and margin) and a condition (what is on the blade). Place, size, turn,
bend, veins and all colours are random, and tell nothing about the class. The pictures only resemble
the plants and diseases that the classes are named after.
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
    Mask,
    field_clock_point,
    fractional_field,
    mark_stroke_in_field,
    parabola_wave_field,
    random_field_turn,
    smooth_noise_field,
    speckled_field,
    turned_field_grid,
)
from lightning_mllm.testbed.domains.painting import (
    Color,
    contrasting_paints,
    measure_paint_brightness,
    measure_paint_coverage,
    paint_ground,
    paint_noise,
    paint_over,
)
from lightning_mllm.testbed.world.draws import Draw


@dataclass(frozen=True)
class LeafPlant:
    """What the blade of a plant looks like.

    Attributes:
        width: Half of the width, as a share of half of the length.
        slant: How far both sides of the blade are drawn back: with 0.5 it is nearly a triangle.
        teeth: Number of teeth on one side.
        depth: Depth of a cut between two teeth, as a share of half of the width.
        round: Whether the teeth are round lobes.
    """

    width: float
    slant: float = 0.0
    teeth: float = 0.0
    depth: float = 0.0
    round: bool = False


@dataclass(frozen=True)
class LeafBlade:
    """A leaf on the canvas; fields have one value per sample, (n, n).

    Attributes:
        u: Coordinate along the leaf, -1 at the stalk and 1 at the tip.
        v: Coordinate across the leaf, in the same unit.
        inside: Which samples are on the blade.
        plant: Plant of the leaf.
        length: Half of the leaf's length, in pixels.
        center: Centre of the leaf, in pixels from the picture's centre.
        angle: Cosine and sine of the angle by which the leaf is turned.
    """

    u: Field
    v: Field
    inside: Mask
    plant: LeafPlant
    length: float
    center: tuple[float, float]
    angle: tuple[float, float]


PLANTS = {
    "birch": LeafPlant(width=0.78, slant=0.5, teeth=4, depth=0.12),
    "elm": LeafPlant(width=0.52, teeth=5, depth=0.3),
    "laurel": LeafPlant(width=0.5),
    "oak": LeafPlant(width=0.66, teeth=2.2, depth=0.6, round=True),
    "willow": LeafPlant(width=0.22),
}


def _draw_blight(draw: Draw, blade: LeafBlade) -> Mask:
    """Return a dead area that begins at the tip or at one side."""
    reach = draw.between(-5, 30) / 100
    edge = 0.35 * smooth_noise_field(draw, 7, 7)[0]
    aside = draw.happens(0.4)
    place = blade.v * (draw.one((-1, 1)) / blade.plant.width) if aside else blade.u - 0.5 * reach
    dead: Mask = place + edge > 0.5 * reach
    return dead


def _draw_mines(draw: Draw, blade: LeafBlade) -> Mask:
    """Return trails that wind through the blade."""
    mask = np.zeros(blade.u.shape, dtype=np.bool_)
    cosine, sine = blade.angle
    left, top = blade.center
    for start in (-0.4, 0.35):
        trail = []
        for u, v in _wind_trail(draw, start, min(1.0, 2 * blade.plant.width)):
            x = left + blade.length * (cosine * u - sine * v)
            y = top + blade.length * (sine * u + cosine * v)
            trail.append((x, y))
        mark_stroke_in_field(mask, trail, draw.between(16, 24) / 10)
    return mask


def _wind_trail(draw: Draw, start: float, narrow: float) -> list[tuple[float, float]]:
    """Return the corners of a winding trail, in coordinates along and across the leaf."""
    u, v = start, 0.0
    points, heading = [(u, v)], draw.below(12)
    bend = draw.one((-1, 1))
    for _ in range(draw.between(7, 10)):
        x, y = field_clock_point(heading)
        u, v = u + 0.17 * x, v + 0.17 * y * narrow
        points.append((u, v))
        bend = -bend if draw.happens(0.35) else bend
        heading = (heading + bend * draw.between(1, 2)) % 12
    return points


def _draw_rust(draw: Draw, blade: LeafBlade) -> Field:
    """Return many tiny specks."""
    cell = draw.between(32, 42) / 10 / blade.length
    u = blade.u[::SAMPLES, ::SAMPLES] / cell  # one sample per pixel: the specks have soft edges
    v = blade.v[::SAMPLES, ::SAMPLES] / cell
    return speckled_field(draw, u, v, (0.26, 0.34), 65)


def _draw_scab(draw: Draw, blade: LeafBlade) -> Mask:
    """Return a few ragged blotches."""
    ragged = 0.7 * smooth_noise_field(draw, 14, 14)[0]
    mask = np.zeros(blade.u.shape, dtype=np.bool_)
    for _ in range(draw.between(4, 6)):
        radius = draw.between(32, 48) / 10 / blade.length
        u = draw.between(-70, 60) / 100
        v = blade.plant.width * (1 - u * u) * draw.between(-60, 60) / 100
        across, along = (blade.v - v) / radius, (blade.u - u) / radius
        mask |= across * across + along * along < 1 + ragged
    return mask


CONDITIONS: dict[str, Callable[[Draw, LeafBlade], Field | Mask] | None] = {
    "healthy": None,
    "blight": _draw_blight,
    "mines": _draw_mines,
    "rust": _draw_rust,
    "scab": _draw_scab,
}


def _name_class(plant: str, condition: str) -> str:
    return f"healthy {plant}" if condition == "healthy" else f"{plant} {condition}"


_PARTS = {_name_class(*parts): parts for parts in product(PLANTS, CONDITIONS)}
CLASSES: tuple[str, ...] = tuple(_PARTS)


def draw_leaf(name: str, key: str) -> Image.Image:
    """Draw a leaf.

    Args:
        name: Class of the leaf, one of `CLASSES`.
        key: Seed of all random choices.
    """
    plant, condition = _PARTS[name]
    draw = Draw("leaves", name, key)
    blade = _shape_blade(draw, PLANTS[plant])
    soil, green = contrasting_paints(draw, 55)
    green = _choose_leaf_color(draw, measure_paint_brightness(green))
    canvas = paint_ground(draw, soil, draw.between(10, 40), cells=5)
    leaf = paint_ground(draw, green, draw.between(5, 20))
    vein = _shift_brightness(draw, green, 28)
    leaf = paint_over(leaf, vein, measure_paint_coverage(_draw_veins(draw, blade)) * 3 // 4)
    draw_marks = CONDITIONS[condition]
    if draw_marks is not None:
        color = _shift_brightness(draw, green, 60)
        leaf = paint_over(leaf, color, measure_paint_coverage(draw_marks(draw, blade)))
    stalk = (abs(blade.v) < 0.035) & (blade.u > -1.35) & (blade.u < 0)
    canvas = paint_over(canvas, vein, measure_paint_coverage(stalk))
    return paint_noise(draw, paint_over(canvas, leaf, measure_paint_coverage(blade.inside)))


def _shape_blade(draw: Draw, plant: LeafPlant) -> LeafBlade:
    """Return a leaf of a plant at a random place, with a random turn and bend."""
    length = draw.between(225, 290) / 10
    angle = random_field_turn(draw, 1.0)
    angle = angle if draw.happens(0.5) else (-angle[0], -angle[1])
    center = (draw.between(-50, 50) / 10, draw.between(-50, 50) / 10)
    u, v = turned_field_grid(angle, center, length)
    v = v + draw.between(-14, 14) / 100 * (u * u - 0.3)
    width = plant.width * draw.between(90, 110) / 100
    place = plant.teeth * (u - 0.35 * abs(v)) + draw.below(100) / 100
    cut = 0.5 + 0.5 * parabola_wave_field(place) if plant.round else fractional_field(place)
    across = v / (width * (1 - plant.depth * cut))
    along = u + plant.slant * abs(v)
    taper = 1 - 0.25 * u  # narrower towards the tip
    across = across / taper
    return LeafBlade(u, v, along * along + across * across < 1, plant, length, center, angle)


def _draw_veins(draw: Draw, blade: LeafBlade) -> Mask:
    pairs = draw.between(28, 40) / 10
    side = fractional_field(pairs * (blade.u - 0.8 * abs(blade.v))) < 0.16
    return side | (abs(blade.v) < 0.03)


def _choose_leaf_color(draw: Draw, brightness: int) -> Color:
    """Return a colour between green and autumn yellow, of about this brightness."""
    bright = min(max(brightness, 60), 190)
    red = bright * draw.between(50, 115) // 100
    return red, bright * 118 // 100, bright * draw.between(25, 60) // 100


def _shift_brightness(draw: Draw, color: Color, step: int) -> Color:
    """Return a colour that is clearly darker or brighter."""
    brightness = measure_paint_brightness(color)
    if brightness > 150:
        sign = -1
    elif brightness < 80:
        sign = 1
    else:
        sign = draw.one((-1, 1))
    red, green, blue = (channel + sign * step + draw.between(-15, 15) for channel in color)
    return red, green, blue
