"""The world: objects on a canvas, and everything that is true of them.

A scene is data, made from a seed; `canvas.py` draws it, `questions.py` and `captions.py` speak about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.world.draws import Draw

SIDE = 64  # of the canvas, in pixels
MOST = 5  # objects: more do not fit on the canvas
CELLS = 8  # columns and rows in which captions give places

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "moon")
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "white")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "dotted", "checkered")
Attribute = Literal["size", "color", "texture", "shape"]
ATTRIBUTES: dict[Attribute, tuple[str, ...]] = {"size": SIZES, "color": COLORS, "texture": TEXTURES, "shape": SHAPES}
RADII = {"small": (6, 7), "large": (10, 11)}  # in pixels, both included

HELD_OUT = frozenset((color, SHAPES[(index + 3) % len(SHAPES)]) for index, color in enumerate(COLORS))
"""Pairs of colour and shape that training never shows or mentions; each colour and each shape is in one of them."""

Pairs = Literal["seen", "held_out", "all"]

_ECHO = 0.5  # chance that an object takes its colour, or its texture, from one that is there: else few would share any
_GAP = 2  # least pixels between two objects
_TRIES = 60


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene.

    Attributes:
        id: Unique in its scene.
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        size: One of `SIZES`.
        texture: One of `TEXTURES`.
        x: Column of its centre, in pixels from the left.
        y: Row of its centre, in pixels from the top.
        radius: Half its side, in pixels.
    """

    id: str
    shape: str
    color: str
    size: str
    texture: str
    x: int
    y: int
    radius: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) in pixels; x and y are those of the top left corner, as in GQA."""
        return self.x - self.radius, self.y - self.radius, 2 * self.radius, 2 * self.radius

    @property
    def cell(self) -> tuple[int, int]:
        """Column and row of its centre, from 1 to `CELLS`."""
        return self.x * CELLS // SIDE + 1, self.y * CELLS // SIDE + 1

    def value(self, attribute: Attribute) -> str:
        """Return the value of an attribute."""
        value: str = getattr(self, attribute)
        return value


@dataclass(frozen=True)
class Scene:
    """Objects, in the order in which they were placed, and the seed of what is not an object: ground and noise.

    Attributes:
        id: Unique within a world: seed, split and number.
        objects: 1 to 5 of them; no two touch.
    """

    id: str
    objects: tuple[SceneObject, ...]

    def graph(self) -> dict[str, Any]:
        """Return the scene graph in the form of GQA's: boxes, attributes and the relations between objects."""
        return {
            "width": SIDE,
            "height": SIDE,
            "objects": {
                thing.id: {
                    "name": thing.shape,
                    **dict(zip("xywh", thing.box, strict=True)),
                    "attributes": [thing.size, thing.color, thing.texture],
                    "relations": [
                        {"name": name, "object": other.id}
                        for other in self.objects
                        if other is not thing
                        for name in relations(thing, other)
                    ],
                }
                for thing in self.objects
            },
        }


def relations(thing: SceneObject, other: SceneObject, least: int = 8) -> list[str]:
    """Return where an object is, seen from another: by at least `least` pixels, else it is on no side of it."""
    found = []
    if abs(thing.x - other.x) >= least:
        found.append("to the left of" if thing.x < other.x else "to the right of")
    if abs(thing.y - other.y) >= least:
        found.append("above" if thing.y < other.y else "below")
    return found


def draw_scene(key: str, *, objects: tuple[int, int] = (1, 5), pairs: Pairs = "seen") -> Scene:
    """Make a scene.

    Args:
        key: Seeds the scene and is its id.
        objects: Least and most objects.
        pairs: Which pairs of colour and shape there may be; with "held_out" at least the first object is of such a
            pair.

    Raises:
        ConfigError: The numbers of objects are none from 1 to 5.
    """
    least, most = objects
    if not 1 <= least <= most <= MOST:
        raise ConfigError(f"A scene has 1 to {MOST} objects, not {least} to {most}.")
    draw = Draw("scene", key)
    count = draw.between(least, most)
    while True:  # rarely a second time: the objects did not fit
        placed: list[SceneObject] = []
        for number in range(count):
            first = number == 0
            allowed = _allowed("held_out" if pairs == "held_out" and first else "seen" if pairs == "seen" else "all")
            thing = _place(draw, placed, allowed)
            if thing is None:
                break
            placed.append(thing)
        if len(placed) == count:
            return Scene(key, tuple(draw.shuffled(placed)))


def _allowed(pairs: Pairs) -> Callable[[str, str], bool]:
    tests: dict[Pairs, Callable[[str, str], bool]] = {
        "seen": lambda color, shape: (color, shape) not in HELD_OUT,
        "held_out": lambda color, shape: (color, shape) in HELD_OUT,
        "all": lambda color, shape: True,
    }
    return tests[pairs]


def _place(draw: Draw, placed: Sequence[SceneObject], allowed: Callable[[str, str], bool]) -> SceneObject | None:
    """Return an object that touches none of those placed; None if there is no room."""
    color = draw.one(placed).color if placed and draw.happens(_ECHO) else draw.one(COLORS)
    texture = draw.one(placed).texture if placed and draw.happens(_ECHO) else draw.one(TEXTURES)
    shape = draw.one([shape for shape in SHAPES if allowed(color, shape)])
    size = draw.one(SIZES)
    radius = draw.between(*RADII[size])
    for _ in range(_TRIES):
        x, y = (draw.between(radius + 1, SIDE - radius - 1) for _ in "xy")
        if all(_apart(x, y, radius, other) for other in placed):
            return SceneObject(str(len(placed) + 1), shape, color, size, texture, x, y, radius)
    return None


def _apart(x: int, y: int, radius: int, other: SceneObject) -> bool:
    """Return whether two bounding boxes leave a gap, so that no patch-sized detail is hidden."""
    return max(abs(x - other.x), abs(y - other.y)) >= radius + other.radius + _GAP
