"""Draws scenes: anti-aliased shapes with textures on a noisy ground.

All arithmetic is on integers, or compares products and sums of doubles, so every platform gets
equal pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE, Scene, SceneObject

Grid = NDArray[np.float64]
Mask = NDArray[np.bool_]

RGB = {
    "red": (215, 40, 40),
    "green": (45, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "orange": (240, 135, 30),
    "purple": (145, 60, 185),
    "cyan": (70, 205, 215),
    "white": (240, 240, 240),
}
_SAMPLES = 4  # samples per pixel and direction
_NOISE = 12  # amplitude of the noise, of 255
_JITTER = 14  # amplitude of the deviation of an object's colour
_GROUND = (35, 95)  # grey levels of the ground
_SHADE = 9, 20  # numerator and denominator of the darker part of a texture
_INNER = 0.38  # distance of a pentagram's sides from its centre
_STAR = (  # normals of a pentagram's sides
    (0.0, 1.0),
    (0.951, 0.309),
    (0.588, -0.809),
    (-0.588, -0.809),
    (-0.951, 0.309),
)


def _count_inner_sides(
    x: Grid, y: Grid, normals: Sequence[tuple[float, float]]
) -> NDArray[np.int64]:
    """Return on the inner side of how many sides of a regular polygon each point lies."""
    count: NDArray[np.int64] = np.stack([u * x + v * y < _INNER for u, v in normals]).sum(axis=0)
    return count


# Where a shape is: x points right and y down, both from -1 to 1 within the object's box.
SHAPE_MASKS: dict[str, Callable[[Grid, Grid], Mask]] = {
    "circle": lambda x, y: x * x + y * y < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.88,
    "triangle": lambda x, y: (y < 0.85) & (y > 2 * abs(x) - 0.95),
    "diamond": lambda x, y: 1.25 * abs(x) + abs(y) < 1.08,
    "star": lambda x, y: _count_inner_sides(x, y, _STAR) >= len(_STAR) - 1,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.36) & (np.maximum(abs(x), abs(y)) < 0.97),
    "ring": lambda x, y: (x * x + y * y < 1) & (x * x + y * y > 0.3),
    "moon": lambda x, y: (x * x + y * y < 1) & ((x - 0.62) * (x - 0.62) + y * y > 0.55),
}
# Where a texture is darker: x and y in pixels from the object's centre.
TEXTURE_MASKS: dict[str, Callable[[Grid, Grid], Mask]] = {
    "solid": lambda x, y: np.zeros(np.broadcast(x, y).shape, dtype=bool),
    "striped": lambda x, y: np.mod(x + y, 5.0) < 2.5,
    "dotted": lambda x, y: (
        (np.mod(x + 1.0, 4.0) - 2.0) ** 2 + (np.mod(y + 1.0, 4.0) - 2.0) ** 2 < 1.6
    ),
    "checkered": lambda x, y: (np.mod(x, 6.0) < 3.0) != (np.mod(y, 6.0) < 3.0),
}


def draw_image(scene: Scene) -> Image.Image:
    """Draw a scene: `SIDE` x `SIDE` pixels, RGB."""
    draw = Draw("canvas", scene.id)
    canvas = np.full((SIDE, SIDE, 3), draw.between(*_GROUND), dtype=np.int64)
    slope = draw.between(-20, 20)
    canvas += (np.arange(SIDE) * slope // SIDE)[:, None, None]
    for thing in scene.objects:
        _paint_object(canvas, thing, draw)
    canvas += draw.noise(SIDE, SIDE, _NOISE)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _paint_object(canvas: NDArray[np.int64], thing: SceneObject, draw: Draw) -> None:
    """Draw an object onto the canvas, in place."""
    color = np.array([channel + draw.between(-_JITTER, _JITTER) for channel in RGB[thing.color]])
    left, top, width, height = thing.box
    steps = (np.arange(2 * thing.radius * _SAMPLES) + 0.5) / _SAMPLES
    offsets = steps - thing.radius  # of the samples from the object's centre, in pixels
    x, y = offsets[None, :], offsets[:, None]
    inside = SHAPE_MASKS[thing.shape](x / thing.radius, y / thing.radius)
    dark = inside & TEXTURE_MASKS[thing.texture](x, y)
    covered, darker = _count_samples(inside), _count_samples(dark)
    numerator, denominator = _SHADE
    light = denominator * (covered - darker) + numerator * darker
    paint = color * light[..., None] // denominator
    uncovered = _SAMPLES**2 - covered
    part = canvas[top : top + height, left : left + width]
    part[:] = (part * uncovered[..., None] + paint) // _SAMPLES**2


def _count_samples(mask: Mask) -> NDArray[np.int64]:
    """Return how many samples of each pixel are set, from 0 to `_SAMPLES` squared.

    (height * samples, width * samples) -> (height, width)
    """
    side = len(mask) // _SAMPLES
    count: NDArray[np.int64] = mask.reshape(side, _SAMPLES, side, _SAMPLES).sum(axis=(1, 3))
    return count
