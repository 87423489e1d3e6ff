"""A tiny model of every family, and a batch about pictures of unequal sizes for it."""

from __future__ import annotations

from typing import Any, get_args

from PIL import Image, ImageDraw

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.tiny import TinyFamily
from lightning_mllm.types import Sample, Turn
from tests.support.loaded import load_copy, read_processor

# the contract in tests/families holds the others
OTHERS = ("aria", "glm4v", "got_ocr2", "granite4_vision", "lighton_ocr", "ovis2", "paddleocr_vl")
TINY_FAMILIES = tuple(name for name in get_args(TinyFamily) if name not in OTHERS)
SIZES = ((40, 28), (48, 28), (28, 56))
ANSWERS = ("red", "blue circle", "no")


def open_backbone(checkpoint: str, **options: Any) -> Backbone:
    """Load a model with sdpa, or as the refusal says."""
    try:
        return load_copy(checkpoint, **options)
    except ConfigError as error:
        assert "Use attention=eager." in str(error)
        return load_copy(checkpoint, attention="eager", **options)


def unequal_pictures(checkpoint: str) -> MultimodalBatch:
    """Three questions and answers about a picture each."""
    samples = []
    for number, (size, answer) in enumerate(zip(SIZES, ANSWERS, strict=True)):
        turns = [Turn("user", "What is it? " * (1 + number), images=1), Turn("assistant", answer)]
        samples.append(Sample(id=str(number), images=[_draw(number, size)], conversation=turns))
    return _collate(checkpoint, samples)


def with_and_without_pictures(checkpoint: str) -> MultimodalBatch:
    """A question about a picture, and two without one."""
    samples = []
    for number, answer in enumerate(ANSWERS):
        turns = [Turn("user", "Which?", images=int(number == 0)), Turn("assistant", answer)]
        images = [_draw(number, SIZES[0])] if number == 0 else []
        samples.append(Sample(id=str(number), images=images, conversation=turns))
    return _collate(checkpoint, samples)


def _collate(checkpoint: str, samples: list[Sample]) -> MultimodalBatch:
    collator = Collator(read_processor(checkpoint), ConversationPrompt())
    return collator([(0, sample) for sample in samples])


def _draw(number: int, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, (30 * number, 90, 200 - 20 * number))
    colour = ("red", "green", "blue")[number]
    ImageDraw.Draw(picture).rectangle((5 + number, 4, 14 + number, 14), fill=colour)
    return picture
