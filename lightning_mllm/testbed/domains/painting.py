"""Colours and paint: how fields become the pixels of a picture.

Pixels are computed on integers, so every platform gets equal ones.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_mllm.testbed.domains.fields import Field, Mask, smooth_noise_field
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE

Canvas: TypeAlias = NDArray[np.int64]
Color: TypeAlias = tuple[int, int, int]

WHOLE = 256  # coverage of a pixel that is all paint

_NOISE = (6, 14)  # least and greatest amplitude of the noise, of 255
_LUMA = (299, 587, 114)  # thousandths of red, green and blue in the brightness


def measure_paint_coverage(levels: Field | Mask) -> Canvas:
    """Return how much of each pixel is covered, 0 to `WHOLE`, from samples between 0 and 1."""
    samples = len(levels) // SIDE
    share = WHOLE // samples**2
    if levels.dtype == np.bool_:
        parts = levels.astype(np.int16) * share
    else:
        parts = (levels * share).astype(np.int16)
    rows = sum((parts[first::samples] for first in range(1, samples)), parts[::samples])
    whole = sum((rows[:, first::samples] for first in range(1, samples)), rows[:, ::samples])
    pixels: Canvas = whole.astype(np.int64)
    return pixels


def random_paint(draw: Draw, low: int = 30, high: int = 225) -> Color:
    """Return a colour with channels between two values."""
    return draw.between(low, high), draw.between(low, high), draw.between(low, high)


def measure_paint_brightness(color: Color) -> int:
    """Return the brightness of a colour, 0 to 255."""
    weighted = (weight * channel for weight, channel in zip(_LUMA, color, strict=True))
    return sum(weighted) // 1000


def contrasting_paints(draw: Draw, least: int) -> tuple[Color, Color]:
    """Return two colours whose brightness differs by at least `least`, in random order."""
    while True:
        first, second = random_paint(draw), random_paint(draw)
        if abs(measure_paint_brightness(first) - measure_paint_brightness(second)) >= least:
            return first, second


def paint_ground(draw: Draw, color: Color, amplitude: int, cells: int = 3) -> Canvas:
    """Return a canvas of one colour with slow changes of brightness."""
    noise = smooth_noise_field(draw, cells, cells, side=SIDE)[0]
    change: Canvas = (noise * amplitude).astype(np.int64)
    return np.array(color) + change[..., None]


def paint_over(canvas: Canvas, color: Color | Canvas, cover: Canvas) -> Canvas:
    """Return a canvas with paint on it, as far as it covers each pixel."""
    return canvas + ((np.asarray(color) - canvas) * cover[..., None] // WHOLE)


def paint_noise(draw: Draw, canvas: Canvas) -> Image.Image:
    """Add noise and return the picture."""
    noisy = canvas + draw.noise(SIDE, SIDE, draw.between(*_NOISE))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
