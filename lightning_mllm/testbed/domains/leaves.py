"""Leaves of five plants, healthy or with one of four diseases: between easy and hard.

A class is a plant (outline and margin) and a condition (what is on the blade). Place, size, turn, bend, veins and all
colours are random, and say nothing about the class; the names only lend a plant's or a disease's looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lightning_mllm.testbed.domains.brushes import (
    SAMPLES,
    Color,
    Field,
    Mask,
    coverage,
    finish,
    fraction,
    ground,
    hour,
    luma,
    paint,
    smooth,
    specks,
    stroke,
    turn,
    turned,
    two_colors,
    wave,
)
from lightning_mllm.testbed.world.draws import Draw


@dataclass(frozen=True)
class Plant:
    """What the blade of a plant looks like.

    Attributes:
        width: Half of it, as a share of half the length.
        slant: How far the blade is drawn back on both sides: 0.5 makes it a triangle, nearly.
        teeth: Of one side.
        depth: Of a cut between two teeth, as a share of the half width.
        round: Whether the teeth are lobes.
    """

    width: float
    slant: float = 0.0
    teeth: float = 0.0
    depth: float = 0.0
    round: bool = False


@dataclass(frozen=True)
class Blade:
    """A leaf on the canvas; fields are of samples, (n, n).

    Attributes:
        u: Along the leaf, -1 at the stalk and 1 at the tip.
        v: Across it, in the same unit.
        inside: Where the blade is.
        plant: Whose leaf it is.
        length: Half of the leaf's, in pixels.
        center: In pixels from the picture's centre.
        angle: Cosine and sine of its turn.
    """

    u: Field
    v: Field
    inside: Mask
    plant: Plant
    length: float
    center: tuple[float, float]
    angle: tuple[float, float]


PLANTS = {
    "birch": Plant(width=0.78, slant=0.5, teeth=4, depth=0.12),
    "elm": Plant(width=0.52, teeth=5, depth=0.3),
    "laurel": Plant(width=0.5),
    "oak": Plant(width=0.66, teeth=2.2, depth=0.6, round=True),
    "willow": Plant(width=0.22),
}


def _blight(chance: Draw, blade: Blade) -> Mask:
    """Dead from the tip or from one side on."""
    reach = chance.between(-5, 30) / 100
    edge = 0.35 * smooth(chance, 7, 7)[0]
    aside = chance.happens(0.4)
    place = blade.v * (chance.one((-1, 1)) / blade.plant.width) if aside else blade.u - 0.5 * reach
    dead: Mask = place + edge > 0.5 * reach
    return dead


def _mines(chance: Draw, blade: Blade) -> Mask:
    """Trails that wind through the blade."""
    mask = np.zeros(blade.u.shape, dtype=np.bool_)
    cosine, sine = blade.angle
    for start in (-0.4, 0.35):
        points, heading = [(start, 0.0)], chance.below(12)
        bend = chance.one((-1, 1))
        for _ in range(chance.between(7, 10)):
            x, y = hour(heading)
            points.append((points[-1][0] + 0.17 * x, points[-1][1] + 0.17 * y * min(1.0, 2 * blade.plant.width)))
            bend = -bend if chance.happens(0.35) else bend
            heading = (heading + bend * chance.between(1, 2)) % 12
        placed = [
            (
                blade.center[0] + blade.length * (cosine * u - sine * v),
                blade.center[1] + blade.length * (sine * u + cosine * v),
            )
            for u, v in points
        ]
        stroke(mask, placed, chance.between(16, 24) / 10)
    return mask


def _rust(chance: Draw, blade: Blade) -> Field:
    """Many tiny specks."""
    cell = chance.between(32, 42) / 10 / blade.length
    u, v = (field[::SAMPLES, ::SAMPLES] / cell for field in (blade.u, blade.v))  # their edges are soft enough
    return specks(chance, u, v, (0.26, 0.34), 65)


def _scab(chance: Draw, blade: Blade) -> Mask:
    """A few ragged blotches."""
    ragged = 0.7 * smooth(chance, 14, 14)[0]
    mask = np.zeros(blade.u.shape, dtype=np.bool_)
    for _ in range(chance.between(4, 6)):
        radius = chance.between(32, 48) / 10 / blade.length
        u = chance.between(-70, 60) / 100
        v = blade.plant.width * (1 - u * u) * chance.between(-60, 60) / 100
        across, along = (blade.v - v) / radius, (blade.u - u) / radius
        mask |= across * across + along * along < 1 + ragged
    return mask


CONDITIONS: dict[str, Callable[[Draw, Blade], Field | Mask] | None] = {
    "healthy": None,
    "blight": _blight,
    "mines": _mines,
    "rust": _rust,
    "scab": _scab,
}
_PARTS = {
    f"healthy {plant}" if condition == "healthy" else f"{plant} {condition}": (plant, condition)
    for plant in PLANTS
    for condition in CONDITIONS
}
CLASSES: tuple[str, ...] = tuple(_PARTS)


def draw(name: str, key: str) -> Image.Image:
    """Draw a leaf.

    Args:
        name: One of `CLASSES`.
        key: Seeds all that is random.
    """
    plant, condition = _PARTS[name]
    chance = Draw("leaves", name, key)
    blade = _blade(chance, PLANTS[plant])
    below, green = two_colors(chance, 55)
    green = _leafy(chance, luma(green))
    canvas = ground(chance, below, chance.between(10, 40), cells=5)
    leaf = ground(chance, green, chance.between(5, 20))
    vein = _shifted(chance, green, 28)
    leaf = paint(leaf, vein, coverage(_veins(chance, blade)) * 3 // 4)
    mark = CONDITIONS[condition]
    if mark is not None:
        leaf = paint(leaf, _shifted(chance, green, 60), coverage(mark(chance, blade)))
    stalk = (abs(blade.v) < 0.035) & (blade.u > -1.35) & (blade.u < 0)
    canvas = paint(canvas, vein, coverage(stalk))
    return finish(chance, paint(canvas, leaf, coverage(blade.inside)))


def _blade(chance: Draw, plant: Plant) -> Blade:
    length = chance.between(225, 290) / 10
    angle = turn(chance, 1.0)
    angle = angle if chance.happens(0.5) else (-angle[0], -angle[1])
    center = (chance.between(-50, 50) / 10, chance.between(-50, 50) / 10)
    u, v = turned(angle, center, length)
    v = v + chance.between(-14, 14) / 100 * (u * u - 0.3)
    width = plant.width * chance.between(90, 110) / 100
    place = plant.teeth * (u - 0.35 * abs(v)) + chance.below(100) / 100
    cut = 0.5 + 0.5 * wave(place) if plant.round else fraction(place)
    across = v / (width * (1 - plant.depth * cut))
    along = u + plant.slant * abs(v)
    taper = 1 - 0.25 * u  # narrower towards the tip
    across = across / taper
    return Blade(u, v, along * along + across * across < 1, plant, length, center, angle)


def _veins(chance: Draw, blade: Blade) -> Mask:
    pairs = chance.between(28, 40) / 10
    side = fraction(pairs * (blade.u - 0.8 * abs(blade.v))) < 0.16
    return side | (abs(blade.v) < 0.03)


def _leafy(chance: Draw, brightness: int) -> Color:
    """Return a colour between green and autumn yellow of about a brightness."""
    bright = min(max(brightness, 60), 190)
    red = bright * chance.between(50, 115) // 100
    return red, bright * 118 // 100, bright * chance.between(25, 60) // 100


def _shifted(chance: Draw, shade: Color, step: int) -> Color:
    """Return a colour that is clearly darker or brighter."""
    sign = -1 if luma(shade) > 150 else 1 if luma(shade) < 80 else chance.one((-1, 1))
    red, green, blue = (channel + sign * step + chance.between(-15, 15) for channel in shade)
    return red, green, blue
