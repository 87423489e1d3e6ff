"""What happens to a picture that is not square, before the checkpoint's own resize."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from PIL import Image
from transformers import ProcessorMixin

from lightning_mllm.errors import ConfigError

Colour = tuple[int, int, int]


GeometryName = Literal["pad", "crop", "squash", "tiles"]  # a Geometry as configs write it


class Geometry(StrEnum):
    """How a picture is made square.

    `PAD`, `CROP` and `SQUASH` give a square picture, so that the Hugging Face processor's resize of the shorter edge
    and its centre crop change no proportions. `TILES` leaves the picture to LLaVA-NeXT's processor, which cuts it
    into tiles of its own aspect ratio. With LLaVA-NeXT the first three make the picture square *before* the tiling.
    """

    PAD = "pad"  # centred on a square canvas of the processor's mean colour: what LLaVA-1.5 was trained with
    CROP = "crop"  # the centre square
    SQUASH = "squash"  # both edges to the longer one, proportions lost
    TILES = "tiles"


def default_geometry(processor: ProcessorMixin) -> Geometry:
    """Return what the family was trained with: tiles where its processor makes them, else padding."""
    return Geometry.TILES if _makes_tiles(processor) else Geometry.PAD


def check_geometry(geometry: Geometry, processor: ProcessorMixin) -> None:
    """Refuse tiles for a family without them.

    Raises:
        ConfigError: `geometry` is TILES and the processor makes none.
    """
    if geometry is Geometry.TILES and not _makes_tiles(processor):
        raise ConfigError(
            f"geometry 'tiles' needs a processor that cuts tiles (LLaVA-NeXT); {type(processor).__name__} does not. "
            "Use 'pad', 'crop' or 'squash'."
        )


def fill_colour(processor: ProcessorMixin) -> Colour:
    """Return the processor's mean colour as 8-bit RGB, rounded down: (122, 116, 104) for CLIP."""
    red, green, blue = (int(mean * 255) for mean in processor.image_processor.image_mean)
    return red, green, blue


def apply_geometry(image: Image.Image, geometry: Geometry, fill: Colour) -> Image.Image:
    """Apply a geometry to an RGB picture; a square one comes back as it is."""
    width, height = image.size
    if width == height or geometry is Geometry.TILES:
        return image
    if geometry is Geometry.PAD:
        return _pad(image, fill)
    if geometry is Geometry.CROP:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    side = max(width, height)
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _pad(image: Image.Image, fill: Colour) -> Image.Image:
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), fill)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _makes_tiles(processor: ProcessorMixin) -> bool:
    return getattr(processor.image_processor, "image_grid_pinpoints", None) is not None
