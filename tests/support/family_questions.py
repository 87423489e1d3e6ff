"""Questions about pictures for checkpoints of any family, and models that compute exactly."""

from __future__ import annotations

import torch

from lightning_mllm.analysis import Block
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Sample, Turn
from tests.support.decoders import Side
from tests.support.feature_samples import picture

_SIZES = ((40, 28), (28, 44), (60, 30))
_QUESTIONS = ("Is it red?", "Which of these colours has it?", "How many are there in it?")


def ask(checkpoint: str, side: Side = "left", count: int = 3) -> MultimodalBatch:
    """Return questions of different lengths about pictures of different sizes."""
    samples = []
    for number, (size, question) in enumerate(zip(_SIZES, _QUESTIONS, strict=True)):
        turns = [Turn("user", question, images=1), Turn("assistant", "red and blue")]
        sample = Sample(id=f"s{number}", images=[picture(number, size)], conversation=turns)
        samples.append((number, sample))
    collator = Collator(load_processor(checkpoint), ConversationPrompt(), padding_side=side)
    return collator(samples[:count])


def load(checkpoint: str, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> Backbone:
    return Backbone.from_pretrained(checkpoint, dtype=dtype, attention=attention)  # type: ignore[arg-type]


def parse(*blocks: str) -> list[Block]:
    return [Block.parse(block) for block in blocks]
