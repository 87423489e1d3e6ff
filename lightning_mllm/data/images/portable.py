"""What a processor must say so that it makes the inputs of the training wherever it is opened."""

from __future__ import annotations

import logging

import numpy as np
import torch
from PIL import Image
from transformers import LlavaImageProcessorPil

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import (
    RECORD,
    Geometry,
    GeometryName,
    ImageProcessor,
    apply_geometry,
    check_geometry,
    crops_itself,
    default_geometry,
    fill_colour,
)
from lightning_mllm.data.images.opening import open_processor, processor_needs_torchvision
from lightning_mllm.data.images.processor import load_processor
from lightning_mllm.data.images.processor_files import (
    ProcessorFiles,
    find_processor_folder,
    list_processor_changes,
)

_ANY_SIDE = 64  # pixels, where the tower takes any size
_SHAPES = ((3, 1), (1, 3), (2, 2))  # of pictures to try: width and height in halves of the side

logger = logging.getLogger(__name__)


def portable_processor(
    checkpoint: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    *,
    geometry: Geometry | GeometryName | None = None,
) -> ProcessorFiles:
    """Return a processor for `export`: as `load_processor` repairs it, and with the geometry.

    If it can't say the geometry, a warning says what is left to do.

    Args:
        checkpoint: Hub id or folder of the checkpoint.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        geometry: How pictures were made square; by default what the checkpoint was trained with.

    Raises:
        CheckpointError: The checkpoint has no usable processor.
        ConfigError: The family was not trained on pictures of any shape.
    """
    processor = load_processor(checkpoint, revision, trust_remote_code)
    untouched = open_processor(checkpoint, processor.config, revision, trust_remote_code)
    chosen = default_geometry(processor) if geometry is None else Geometry(geometry)
    check_geometry(chosen, processor)
    to_do = state_geometry(processor, chosen)
    if to_do:
        logger.warning(
            "The model takes pictures with geometry '%s', which a %s can't say: the exported "
            "processor leaves it out. Whoever opens the folder without lightning_mllm must do it "
            "first to each picture that is not square: %s.",
            chosen,
            type(processor.image_processor).__name__.removesuffix("Pil"),
            to_do,
        )
    return ProcessorFiles(
        source=find_processor_folder(checkpoint, revision, trust_remote_code),
        own=list_processor_changes(untouched, processor.hf),
        image=list_processor_changes(untouched.image_processor, processor.image_processor),
        kind=type(processor.hf).__name__,
        with_code=trust_remote_code,
        needs_torchvision=processor_needs_torchvision(type(processor.hf)),
    )


def state_geometry(processor: CheckpointProcessor, geometry: Geometry) -> str | None:
    """Let a processor itself do what `apply_geometry` does to a picture before it, if it can.

    A geometry that is not the family's own is written into the processor in either case:
    `default_geometry` reads it there.

    Returns:
        What is left to do to each picture before the processor gets it; None if there is nothing.
    """
    if geometry is Geometry.NATIVE and default_geometry(processor) is Geometry.NATIVE:
        return None
    found = processor.image_processor
    stated = _make_stating_processor(processor, geometry)
    says_it = True
    for picture in _draw_pictures(processor):
        says_it = says_it and _make_equal_pixels(stated, found, geometry, picture)
    image_processor = stated if says_it else found
    setattr(image_processor, RECORD, str(geometry))
    processor.hf.image_processor = image_processor
    return None if says_it else _describe_what_is_left(processor, geometry)


def _make_stating_processor(processor: CheckpointProcessor, geometry: Geometry) -> ImageProcessor:
    """Return a processor whose settings ask for the geometry, which it may not obey."""
    image_processor = processor.image_processor
    if processor.family.native or geometry is Geometry.CROP:
        return image_processor
    options, side = image_processor.to_dict(), _find_side(image_processor)
    square = {"height": side, "width": side}
    if geometry is Geometry.SQUASH:
        return type(image_processor)(**options | {"size": square})
    crops = crops_itself(image_processor)
    padding = {"do_pad": True, "do_center_crop": crops, "crop_size": square}
    return LlavaImageProcessorPil(**options | padding)


def _find_side(image_processor: ImageProcessor) -> int:
    """Return the side of the picture that the tower gets."""
    name = "crop_size" if crops_itself(image_processor) else "size"
    return max(int(value) for value in dict(getattr(image_processor, name)).values() if value)


def _make_equal_pixels(
    stated: ImageProcessor, found: ImageProcessor, geometry: Geometry, picture: Image.Image
) -> bool:
    """Return whether one processor makes what the other makes of a picture made square."""
    ours = found([apply_geometry(picture, geometry, found)], return_tensors="pt")
    theirs = stated([picture], return_tensors="pt")
    return all(torch.equal(theirs[name], ours[name]) for name in found.model_input_names)


def _draw_pictures(processor: CheckpointProcessor) -> list[Image.Image]:
    """Return pictures of noise, wide, high and nearly square."""
    native = processor.family.native
    side = _ANY_SIDE if native else _find_side(processor.image_processor)
    noise = np.random.default_rng(0)
    pictures = []
    for width, height in _SHAPES:
        shape = (height * side // 2, width * side // 2 + 1, 3)
        pictures.append(Image.fromarray(noise.integers(256, size=shape, dtype=np.uint8)))
    return pictures


def _describe_what_is_left(processor: CheckpointProcessor, geometry: Geometry) -> str:
    """Return what is to be done to a picture before the processor gets it."""
    image_processor = processor.image_processor
    if geometry is Geometry.PAD:
        return f"pad it to a square, centred, with the colour {fill_colour(image_processor)}"
    if geometry is Geometry.CROP:
        return "cut out the square in its centre"
    native = processor.family.native
    side = "its longer edge" if native else f"{_find_side(image_processor)} pixels"
    return f"resize it to a square of {side}, with the processor's resampling filter"
