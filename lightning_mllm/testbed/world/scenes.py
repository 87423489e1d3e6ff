"""The world: objects on a canvas, and all facts about them.

A scene is data made from a seed. `canvas.py` draws it; `language/` asks questions about it and
describes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.world.draws import Draw

SIDE = 64  # side of the canvas, in pixels
MAX_OBJECTS = 5  # greatest number of objects: more do not fit on the canvas
CELLS = 8  # columns, and rows, of the grid in which captions give places

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "moon")
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "white")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "dotted", "checkered")
Attribute = Literal["size", "color", "texture", "shape"]
ATTRIBUTES: dict[Attribute, tuple[str, ...]] = {
    "size": SIZES,
    "color": COLORS,
    "texture": TEXTURES,
    "shape": SHAPES,
}
RADII = {"small": (6, 7), "large": (10, 11)}  # in pixels, both included

HELD_OUT = frozenset(
    (color, SHAPES[(index + 3) % len(SHAPES)]) for index, color in enumerate(COLORS)
)
"""Pairs of colour and shape that training never shows or mentions.

Each colour and each shape is in one of them.
"""

Pairs = Literal["seen", "held_out", "all"]

_ECHO = 0.5  # probability that an object copies its colour, or texture, from an earlier object
_GAP = 2  # smallest distance between two objects, in pixels
_TRIES = 60  # places tried for an object


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene.

    Attributes:
        id: Name of the object, unique in its scene.
        shape: Shape of the object, one of `SHAPES`.
        color: Colour of the object, one of `COLORS`.
        size: Size of the object, one of `SIZES`.
        texture: Texture of the object, one of `TEXTURES`.
        x: Column of its centre, in pixels from the left.
        y: Row of its centre, in pixels from the top.
        radius: Half the side of its box, in pixels.
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
        """(x, y, width, height) in pixels; (x, y) is the top left corner, as in GQA."""
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
    """Objects on a canvas.

    Attributes:
        id: Seed, split and number, unique within a world; it also seeds ground and noise.
        objects: From 1 to 5 objects, no two of which touch.
    """

    id: str
    objects: tuple[SceneObject, ...]

    def fields(self) -> dict[str, str | float]:
        """Return facts that every scene has: its number of objects, and the leftmost of them."""
        first = min(self.objects, key=lambda thing: (thing.x, thing.y))
        facts: dict[str, str | float] = {"objects": len(self.objects), "leftmost_column": first.x}
        for attribute in ATTRIBUTES:
            facts[f"leftmost_{attribute}"] = first.value(attribute)
        return facts

    def graph(self) -> dict[str, Any]:
        """Return the scene graph in GQA's form: boxes, attributes and relations of the objects."""
        nodes = {thing.id: self._graph_node(thing) for thing in self.objects}
        return {"width": SIDE, "height": SIDE, "objects": nodes}

    def _graph_node(self, thing: SceneObject) -> dict[str, Any]:
        found = []
        for other in self.objects:
            if other is not thing:
                found += [
                    {"name": name, "object": other.id} for name in scene_relations(thing, other)
                ]
        return {
            "name": thing.shape,
            **dict(zip("xywh", thing.box, strict=True)),
            "attributes": [thing.size, thing.color, thing.texture],
            "relations": found,
        }


def scene_relations(thing: SceneObject, other: SceneObject, least: int = 8) -> list[str]:
    """Return the relations of an object to another, e.g. "above", by at least `least` pixels."""
    found = []
    if abs(thing.x - other.x) >= least:
        found.append("to the left of" if thing.x < other.x else "to the right of")
    if abs(thing.y - other.y) >= least:
        found.append("above" if thing.y < other.y else "below")
    return found


def draw_scene(key: str, *, objects: tuple[int, int] = (1, 5), pairs: Pairs = "seen") -> Scene:
    """Make a scene.

    Args:
        key: Seed of the scene, and its id.
        objects: Least and greatest number of objects.
        pairs: Which pairs of colour and shape may occur. With "held_out", at least the first
            object has a held-out pair.

    Raises:
        ConfigError: The numbers of objects are not from 1 to 5.
    """
    least, most = objects
    if not 1 <= least <= most <= MAX_OBJECTS:
        raise ConfigError(f"A scene has 1 to {MAX_OBJECTS} objects, not {least} to {most}.")
    draw = Draw("scene", key)
    count = draw.between(least, most)
    placed = None
    while placed is None:  # rarely a second time: the objects did not fit
        placed = _place_objects(draw, count, pairs)
    return Scene(key, tuple(draw.shuffled(placed)))


def _place_objects(draw: Draw, count: int, pairs: Pairs) -> list[SceneObject] | None:
    """Return objects that do not touch; None if one of them found no room."""
    placed: list[SceneObject] = []
    for _ in range(count):
        allowed: Pairs = "all" if pairs == "held_out" and placed else pairs
        thing = _place_object(draw, placed, allowed)
        if thing is None:
            return None
        placed.append(thing)
    return placed


def _allowed_shapes(color: str, pairs: Pairs) -> list[str]:
    """Return the shapes that an object of a colour may have."""
    if pairs == "all":
        return list(SHAPES)
    return [shape for shape in SHAPES if ((color, shape) in HELD_OUT) == (pairs == "held_out")]


def _place_object(draw: Draw, placed: Sequence[SceneObject], pairs: Pairs) -> SceneObject | None:
    """Return an object that touches none of those placed; None if there is no room."""
    color = draw.one(placed).color if placed and draw.happens(_ECHO) else draw.one(COLORS)
    texture = draw.one(placed).texture if placed and draw.happens(_ECHO) else draw.one(TEXTURES)
    shape = draw.one(_allowed_shapes(color, pairs))
    size = draw.one(SIZES)
    radius = draw.between(*RADII[size])
    for _ in range(_TRIES):
        x = draw.between(radius + 1, SIDE - radius - 1)
        y = draw.between(radius + 1, SIDE - radius - 1)
        if all(_is_apart(x, y, radius, other) for other in placed):
            return SceneObject(str(len(placed) + 1), shape, color, size, texture, x, y, radius)
    return None


def _is_apart(x: int, y: int, radius: int, other: SceneObject) -> bool:
    """Return whether two bounding boxes leave a gap, so that no patch-sized detail is hidden."""
    return max(abs(x - other.x), abs(y - other.y)) >= radius + other.radius + _GAP
