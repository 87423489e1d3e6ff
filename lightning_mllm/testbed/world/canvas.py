"""Draws scenes: anti-aliased shapes with textures on a noisy ground.

All arithmetic is of integers, or of comparisons of products and sums of doubles, so every platform gets equal pixels.
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
_SAMPLES = 4  # per pixel and direction
_NOISE = 12  # amplitude of the noise, of 255
_JITTER = 14  # amplitude of the deviation of an object's colour
_GROUND = (35, 95)  # grey levels of the ground
_SHADE = 9, 20  # numerator and denominator of the darker part of a texture
_INNER = 0.38  # distance of a pentagram's sides from its centre
_STAR = ((0.0, 1.0), (0.951, 0.309), (0.588, -0.809), (-0.588, -0.809), (-0.951, 0.309))  # normals of a pentagram


def _inside(x: Grid, y: Grid, normals: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
    """Return at how many sides of a regular polygon points lie inside."""
    count: NDArray[np.int64] = np.stack([u * x + v * y < _INNER for u, v in normals]).sum(axis=0)
    return count


SHAPE_MASKS: dict[str, Callable[[Grid, Grid], Mask]] = {  # on x to the right and y down, -1 to 1 within the box
    "circle": lambda x, y: x * x + y * y < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.88,
    "triangle": lambda x, y: (y < 0.85) & (y > 2 * abs(x) - 0.95),
    "diamond": lambda x, y: 1.25 * abs(x) + abs(y) < 1.08,
    "star": lambda x, y: _inside(x, y, _STAR) >= len(_STAR) - 1,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.36) & (np.maximum(abs(x), abs(y)) < 0.97),
    "ring": lambda x, y: (x * x + y * y < 1) & (x * x + y * y > 0.3),
    "moon": lambda x, y: (x * x + y * y < 1) & ((x - 0.62) * (x - 0.62) + y * y > 0.55),
}
TEXTURE_MASKS: dict[str, Callable[[Grid, Grid], Mask]] = {  # on pixels from the object's centre: where it is darker
    "solid": lambda x, y: np.zeros(np.broadcast(x, y).shape, dtype=bool),
    "striped": lambda x, y: np.mod(x + y, 5.0) < 2.5,
    "dotted": lambda x, y: (np.mod(x + 1.0, 4.0) - 2.0) ** 2 + (np.mod(y + 1.0, 4.0) - 2.0) ** 2 < 1.6,
    "checkered": lambda x, y: (np.mod(x, 6.0) < 3.0) != (np.mod(y, 6.0) < 3.0),
}


def draw_image(scene: Scene) -> Image.Image:
    """Draw a scene: `SIDE` x `SIDE` pixels, RGB."""
    draw = Draw("canvas", scene.id)
    canvas = np.full((SIDE, SIDE, 3), draw.between(*_GROUND), dtype=np.int64)
    slope = draw.between(-20, 20)
    canvas += (np.arange(SIDE) * slope // SIDE)[:, None, None]
    for thing in scene.objects:
        _paint(canvas, thing, draw)
    canvas += draw.noise(SIDE, SIDE, _NOISE)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _paint(canvas: NDArray[np.int64], thing: SceneObject, draw: Draw) -> None:
    color = np.array([channel + draw.between(-_JITTER, _JITTER) for channel in RGB[thing.color]])
    left, top, width, height = thing.box
    step = (np.arange(2 * thing.radius * _SAMPLES) + 0.5) / _SAMPLES - thing.radius  # pixels from the centre
    x, y = step[None, :], step[:, None]
    inside = SHAPE_MASKS[thing.shape](x / thing.radius, y / thing.radius)
    dark = inside & TEXTURE_MASKS[thing.texture](x, y)
    covered, darker = _count(inside), _count(dark)  # 0 to _SAMPLES ** 2
    part = canvas[top : top + height, left : left + width]
    numerator, denominator = _SHADE
    paint = color * (denominator * (covered - darker) + numerator * darker)[..., None] // denominator
    part[:] = (part * (_SAMPLES**2 - covered)[..., None] + paint) // _SAMPLES**2


def _count(mask: Mask) -> NDArray[np.int64]:
    """(height * samples, width * samples) -> (height, width): how many of a pixel's samples are set."""
    side = len(mask) // _SAMPLES
    count: NDArray[np.int64] = mask.reshape(side, _SAMPLES, side, _SAMPLES).sum(axis=(1, 3))
    return count
