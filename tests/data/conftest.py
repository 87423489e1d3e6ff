"""Processors of all tiny checkpoints, and pictures to feed them."""

import pytest
from PIL import Image
from transformers import ProcessorMixin

from lightning_mllm.data import load_processor
from lightning_mllm.models.tiny import Chat, TinyFamily
from lightning_mllm.types import Sample, Turn
from tests.conftest import TinyBuilder

CHECKPOINTS: list[tuple[TinyFamily, Chat]] = [
    ("llava", "vicuna"),
    ("llava", "llama3"),
    ("llava_next", "vicuna"),
    ("llava_next", "llama3"),
]


@pytest.fixture(params=CHECKPOINTS, ids="-".join)
def processor(request: pytest.FixtureRequest, tiny_checkpoint: TinyBuilder) -> ProcessorMixin:
    return load_processor(tiny_checkpoint(*request.param))


@pytest.fixture
def vicuna(tiny_llava: str) -> ProcessorMixin:
    return load_processor(tiny_llava)


def picture(width: int = 40, height: int = 30, colour: tuple[int, int, int] = (200, 30, 60)) -> Image.Image:
    image = Image.new("RGB", (width, height), colour)
    image.paste((0, 0, 0), (0, 0, width // 2, height // 3))
    return image


def chat_sample(name: str = "chat", images: int = 2) -> Sample:
    """Two exchanges; all images but the last stand in the first turn, the last in the second."""
    first = max(images - 1, 0)
    return Sample(
        id=name,
        images=[picture(30 + 25 * k, 50) for k in range(images)],
        conversation=[
            Turn("user", "Which colour? Rot, grün — oder 赤?", images=first),
            Turn("assistant", "Red."),
            Turn("user", "And the other one", "Answer with one word.", images=images - first),
            Turn("assistant", "blue"),
        ],
    )
