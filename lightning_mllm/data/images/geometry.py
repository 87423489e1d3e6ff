"""What happens to a picture that is not square, before the checkpoint's own resize."""

from __future__ import annotations

import logging
from enum import StrEnum
from functools import cache
from typing import Any, Literal

from PIL import Image

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.errors import ConfigError

Colour = tuple[int, int, int]
Size = tuple[int, int]  # width and height in pixels
RECORD = "trained_geometry"  # key of a processor that this package exported
# of transformers, which sets its options (`size`, `do_resize`, ...) from the checkpoint's files
ImageProcessor = Any

logger = logging.getLogger(__name__)


# a Geometry as configs write it; "tiles" is LLaVA-NeXT's word for "native"
GeometryName = Literal["pad", "crop", "squash", "native", "tiles"]


class Geometry(StrEnum):
    """How a picture is made square.

    No picture is resampled twice: `CROP` is the processor's own resize of the shorter edge and
    centre crop where it has them, and `SQUASH` resizes to the size of its crop at once. `NATIVE`
    leaves the picture to the processor of a family that takes any shape, as tiles of its own aspect
    ratio (LLaVA-NeXT, InternVL) or at its own resolution (Qwen-VL, Pixtral), or that squashes it
    itself (Gemma 3); there, the others make it square *before* the processor's work.
    """

    # centred on a square canvas of the processor's mean colour: what LLaVA-1.5 was trained with
    PAD = "pad"
    CROP = "crop"  # the centre square
    SQUASH = "squash"  # both edges to one length, proportions lost
    NATIVE = "native"  # as the family's own processor takes it; also written "tiles"

    @classmethod
    def _missing_(cls, value: object) -> Geometry | None:
        return cls.NATIVE if value == "tiles" else None


def default_geometry(processor: CheckpointProcessor) -> Geometry:
    """Return what the checkpoint was trained with, if its processor was exported by this package.

    Otherwise return what the family was trained with: pictures as they are, or padded squares.
    """
    recorded = getattr(processor.image_processor, RECORD, None)
    if recorded:
        return Geometry(recorded)
    return Geometry.NATIVE if processor.family.native else Geometry.PAD


def check_geometry(geometry: Geometry, processor: CheckpointProcessor) -> None:
    """Refuse pictures of any shape for a family that was trained on padded squares.

    Raises:
        ConfigError: `geometry` is NATIVE and the family's processor takes squares.
    """
    if geometry is Geometry.NATIVE and not processor.family.native:
        raise ConfigError(
            "geometry 'native' (or 'tiles') needs a family whose processor takes pictures of any "
            f"shape, such as LLaVA-NeXT or Qwen-VL; {type(processor.hf).__name__} with its vision "
            "tower does not. Use 'pad', 'crop' or 'squash'."
        )


@cache
def warn_of_no_tiles(processor: str) -> None:
    """Say, once for a processor's class, that `tiles` is `native` where none are made."""
    logger.warning(
        "geometry 'tiles' is another word for 'native', and %s makes no tiles: pictures go to it "
        "as they are.",
        processor,
    )


def fill_colour(image_processor: ImageProcessor) -> Colour:
    """Return the processor's mean colour as 8-bit RGB, rounded down: (122, 116, 104) for CLIP.

    That is the middle grey where the processor names none.
    """
    means = getattr(image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    red, green, blue = (int(mean * 255) for mean in means)
    return red, green, blue


def apply_geometry(
    image: Image.Image, geometry: Geometry, image_processor: ImageProcessor
) -> Image.Image:
    """Prepare an RGB picture for a processor; a square one comes back as it is."""
    width, height = image.size
    if width == height or geometry is Geometry.NATIVE:
        return image
    if geometry is Geometry.PAD:
        return _pad(image, fill_colour(image_processor))
    if geometry is Geometry.CROP:
        return image if crops_itself(image_processor) else _crop(image)
    target = squashed_size(image.size, image_processor)
    if target == image.size:
        return image
    return image.resize(target, Image.Resampling(image_processor.resample))


def squashed_size(size: Size, image_processor: ImageProcessor) -> Size:
    """Return the size that a picture is squashed to, so that the processor need not resize it."""
    resizes_to_height = image_processor.do_resize and "height" in (image_processor.size or ())
    if resizes_to_height and not makes_tiles(image_processor):
        return size  # SigLIP's processor squashes by itself
    if crops_itself(image_processor):
        target = image_processor.crop_size
        return target["width"], target["height"]
    longer = max(size)  # before tiling, which takes any size
    return longer, longer


def size_before_processor(size: Size, geometry: Geometry) -> Size:
    """Return the shape in which a picture reaches a processor that takes any."""
    if geometry is Geometry.NATIVE:
        return size
    side = min(size) if geometry is Geometry.CROP else max(size)
    return side, side


def _crop(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _pad(image: Image.Image, fill: Colour) -> Image.Image:
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), fill)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def makes_tiles(image_processor: ImageProcessor) -> bool:
    """Return whether the processor may cut a picture into tiles, by its shape.

    InternVL's does so whatever the option `crop_to_patches` of its image processor says.
    """
    names = ("image_grid_pinpoints", "crop_to_patches", "do_image_splitting")
    return any(getattr(image_processor, name, None) is not None for name in names)


def crops_itself(image_processor: ImageProcessor) -> bool:
    """Return whether the processor keeps proportions and makes pictures square by a centre crop."""
    resizes = image_processor.do_resize and "shortest_edge" in (image_processor.size or ())
    crops = getattr(image_processor, "do_center_crop", False)
    return bool(resizes and crops) and not makes_tiles(image_processor)
