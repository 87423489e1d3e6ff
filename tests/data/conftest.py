"""Processors of all tiny checkpoints, samples to feed them, and a look at what comes out."""

from collections.abc import Callable
from functools import cache

import pytest
from PIL import Image

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, load_processor
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.models.tiny import Chat, TinyFamily
from lightning_mllm.types import Sample, Segment, Turn
from tests.conftest import FamilyBuilder, TinyBuilder

CHECKPOINTS: list[tuple[TinyFamily, Chat]] = [
    ("llava", "vicuna"),
    ("llava", "llama3"),
    ("llava_next", "vicuna"),
    ("llava_next", "llama3"),
]
NAMES = ("Bell pepper leaf", "three", "two")
TEXT_ONLY = Sample(id="text", conversation=[Turn("user", "Is there any?"), Turn("assistant", "no")])


@pytest.fixture(params=CHECKPOINTS, ids="-".join)
def processor(request: pytest.FixtureRequest, tiny_checkpoint: TinyBuilder) -> CheckpointProcessor:
    return load_processor(tiny_checkpoint(*request.param))


@pytest.fixture
def vicuna(tiny_llava: str) -> CheckpointProcessor:
    return load_processor(tiny_llava)


@pytest.fixture(scope="session")
def family_processor(
    tiny_family: FamilyBuilder,
) -> Callable[[TinyFamily], CheckpointProcessor]:
    """A function from a family to its processor, which tests do not change."""
    return cache(lambda family: load_processor(tiny_family(family)))


def picture(
    width: int = 40, height: int = 30, colour: tuple[int, int, int] = (200, 30, 60)
) -> Image.Image:
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


def labelled(name: str = "a", label: str = "two", images: int = 1) -> Sample:
    return Sample(id=name, images=[picture(40, 30 + 20 * k) for k in range(images)], label=label)


def collate(collator: Collator, *samples: Sample) -> MultimodalBatch:
    return collator([(0, sample) for sample in samples])


def decode(
    processor: CheckpointProcessor, batch: MultimodalBatch, segment: Segment, row: int = 0
) -> str:
    return str(processor.tokenizer.decode(batch.input_ids[row][batch.spans[segment][row]]))


def tokens(batch: MultimodalBatch, row: int) -> list[int]:
    return batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
