"""What a processor must say so that it makes, opened by anyone, the inputs that training made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from transformers import LlavaImageProcessorPil, ProcessorMixin

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
    makes_tiles,
)
from lightning_mllm.data.images.processor import load_processor
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.rendering import Renderer
from lightning_mllm.data.text.script import script_of
from lightning_mllm.types import Sample

_SHAPES = ((3, 1), (1, 3), (2, 2))  # of pictures to try: width and height in halves of the side
_SHOWN = 120  # characters of a prompt in a warning

log = logging.getLogger(__name__)


def portable_processor(
    checkpoint: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    *,
    geometry: Geometry | GeometryName | None = None,
) -> ProcessorMixin:
    """Load a processor for `export`: as `load_processor` repairs it, and with the geometry.

    Where it can't say the geometry, a warning says what is left to do.

    Args:
        checkpoint: Hub id or folder.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        geometry: How pictures were made square; by default what the checkpoint was trained with.

    Raises:
        CheckpointError: The checkpoint has no usable processor.
        ConfigError: The processor can't make tiles.
    """
    processor = load_processor(checkpoint, revision, trust_remote_code)
    chosen = default_geometry(processor) if geometry is None else Geometry(geometry)
    check_geometry(chosen, processor)
    if to_do := state_geometry(processor, chosen):
        log.warning(
            "The model takes pictures with geometry '%s', which a %s can't say: the exported processor "
            "leaves it out. Whoever opens the folder without lightning_mllm must do it first to each "
            "picture that is not square: %s.",
            chosen,
            type(processor.image_processor).__name__.removesuffix("Pil"),
            to_do,
        )
    return processor


def state_geometry(processor: ProcessorMixin, geometry: Geometry) -> str | None:
    """Let a processor do by itself what `apply_geometry` does to a picture before it, if it can.

    It notes the geometry in either case: with this package, `default_geometry` reads the note.

    Returns:
        What is left to do to each picture before the processor gets it; None if there is nothing.
    """
    found = processor.image_processor
    stated = _stated(found, geometry)
    says_it = all(_equal(stated, found, geometry, picture) for picture in _pictures(found))
    image_processor = stated if says_it else found
    setattr(image_processor, RECORD, str(geometry))
    processor.image_processor = image_processor
    return None if says_it else _to_do(found, geometry)


def describe_inputs(collator: Collator, sample: Sample) -> dict[str, Any]:
    """Return how a collator makes a model's inputs, as plain data.

    Returns:
        The `geometry`; and of the sample, what is `asked`, and what the checkpoint's own chat
        `template` makes of the same conversation.
    """
    dialogue = collator.prompt.dialogue(sample, collator.label_names, epoch=0)
    rendered = Renderer(collator.processor).render(dialogue)
    asked = rendered.text[: rendered.answers[-1].start]
    return {
        "geometry": str(collator.geometry),
        "asked": asked,
        "template": _by_template(collator.processor, dialogue),
    }


def trained_geometry(record: Mapping[str, Any], data: Any) -> GeometryName | None:
    """Return the geometry that an export has to write, and warn of what it can't write.

    Args:
        record: Our entry in the training checkpoint; without one, its `inputs` alone.
        data: The DataModule, whose geometry goes before the checkpoint's; None if there is none.

    Returns:
        Its name; None if nothing but the checkpoint's default can be meant.
    """
    if record.get("edited"):
        log.warning(
            "A callback changed the model's computations in training (e.g. SkipComputations). The "
            "exported model computes everything: its answers are those of an evaluation without the "
            "callback, not those of the validation."
        )
    inputs = record.get("inputs", {})
    if inputs.get("asked") != inputs.get("template"):
        log.warning(
            "The exported chat template does not write what the model was asked. It was asked %r, the "
            "template makes %r of this. Whoever opens the folder has to write the prompt as the first.",
            *_around_the_difference(inputs["asked"], inputs["template"]),
        )
    asked: GeometryName | None = getattr(data, "geometry", None)
    validated: GeometryName | None = inputs.get("geometry")
    if asked and validated and asked != validated:
        log.warning(
            "The model was validated with geometry '%s'; '%s' is exported, as data says.",
            validated,
            asked,
        )
    if "policy" in record and data is None and validated is None:
        log.warning(
            "The training checkpoint does not say how pictures were made square, and no data is named: "
            "the default is exported. Add --config <the run's config.yaml> if it was another."
        )
    return asked or validated


def _stated(image_processor: ImageProcessor, geometry: Geometry) -> ImageProcessor:
    """Return a processor whose settings ask for the geometry; whether it obeys is to be seen."""
    if makes_tiles(image_processor) or geometry is Geometry.CROP:
        return image_processor
    options, side = image_processor.to_dict(), _side(image_processor)
    square = {"height": side, "width": side}
    if geometry is Geometry.SQUASH:
        return type(image_processor)(**options | {"size": square})
    crops = crops_itself(image_processor)
    return LlavaImageProcessorPil(**options | {"do_pad": True, "do_center_crop": crops, "crop_size": square})


def _side(image_processor: ImageProcessor) -> int:
    """Return the side of the picture that the tower gets."""
    name = "crop_size" if crops_itself(image_processor) else "size"
    return max(int(value) for value in dict(getattr(image_processor, name)).values() if value)


def _equal(stated: ImageProcessor, found: ImageProcessor, geometry: Geometry, picture: Image.Image) -> bool:
    ours = found([apply_geometry(picture, geometry, found)])
    theirs = stated([picture])
    return all(np.array_equal(theirs[name][0], ours[name][0]) for name in found.model_input_names)


def _pictures(image_processor: ImageProcessor) -> list[Image.Image]:
    side, noise = _side(image_processor), np.random.default_rng(0)
    sizes = [(width * side // 2 + 1, height * side // 2) for width, height in _SHAPES]
    return [Image.fromarray(noise.integers(256, size=(height, width, 3), dtype=np.uint8)) for width, height in sizes]


def _to_do(image_processor: ImageProcessor, geometry: Geometry) -> str:
    if geometry is Geometry.PAD:
        return f"pad it to a square, centred, with the colour {fill_colour(image_processor)}"
    if geometry is Geometry.CROP:
        return "cut out the square in its centre"
    side = "its longer edge" if makes_tiles(image_processor) else f"{_side(image_processor)} pixels"
    return f"resize it to a square of {side}, with the processor's resampling filter"


def _by_template(processor: ProcessorMixin, dialogue: Dialogue) -> str:
    """Return a conversation up to its last answer, as `apply_chat_template` writes it."""
    script, texts = script_of(dialogue)
    messages = script.messages(texts)[:-1]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _around_the_difference(first: str, second: str) -> tuple[str, str]:
    differs = [one != other for one, other in zip(f"{first}\0", f"{second}\1", strict=False)]
    start = max(0, differs.index(True) - _SHOWN // 2)
    return first[start : start + _SHOWN], second[start : start + _SHOWN]
