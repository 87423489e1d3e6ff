"""What a processor must say so that it makes, opened by anyone, the inputs that training made."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import LlavaImageProcessorPil, ProcessorMixin

from lightning_mllm.data.base import MLLMDataModule
from lightning_mllm.data.geometry import (
    RECORD,
    Geometry,
    ImageProcessor,
    apply_geometry,
    crops_itself,
    fill_colour,
    makes_tiles,
)
from lightning_mllm.data.prompts import Dialogue
from lightning_mllm.data.rendering import Renderer

_SHAPES = ((3, 1), (1, 3), (2, 2))  # of pictures to try: width and height in halves of the side


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


def describe_inputs(data: MLLMDataModule) -> dict[str, Any]:
    """Return how validation makes a model's inputs, as plain data; the DataModule is set up.

    Returns:
        The `geometry`; and of the first sample, what is `asked`, and what the checkpoint's own chat
        `template` makes of the same conversation.
    """
    collator = data.eval_collator
    dialogue = collator.prompt.dialogue(data.samples["val"][0], collator.label_names, epoch=0)
    rendered = Renderer(data.processor).render(dialogue)
    asked = rendered.text[: rendered.answers[-1].start]
    return {
        "geometry": str(collator.geometry),
        "asked": asked,
        "template": _by_template(data.processor, dialogue),
    }


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
    messages: list[dict[str, Any]] = []
    if dialogue.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": dialogue.system.strip()}]})
    for turn in dialogue.turns[:-1]:
        text = dialogue.joint.join(part for part in (turn.text, turn.instruction) if part)
        content: list[dict[str, str]] = [{"type": "image"}] * turn.images
        messages.append({"role": turn.role, "content": content + [{"type": "text", "text": text}] * bool(text)})
    return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
