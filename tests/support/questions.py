"""Questions with kinds, options and boxes, and an examiner who knows which are answered right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoTokenizer

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import MLLMDataModule
from lightning_mllm.evaluation import Match, OpenAnswer
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Box, Options, Sample, Turn
from tests.support.command_line import picture
from tests.support.loaded import load_copy

WRONG = ("test-2", "val-2")  # what the model answers wrongly, as the examiner has it
WITHOUT_BOX = ("test-1", "val-1")
COLOURS = (("red", "blue"), ("blue", "red"), ("no", "yes"))


class Questions(MLLMDataModule):
    """Six questions per split: of two kinds, one of them with options; the second has no box."""

    def load(self, split: str) -> list[Sample]:
        return [question(split, number) for number in range(6)]


def question(split: str, number: int) -> Sample:
    right, wrong = COLOURS[number % 3]
    choose = number % 3 < 2
    text = (
        f"Is it {right} or {wrong}?"
        if choose
        else "Is there any of the yellow shapes in this picture?"
    )
    name = f"{split}-{number}"
    return Sample(
        id=name,
        images=[picture(number, (24 + number, 20))],
        kind="choose/attr" if choose else "logical/obj",
        conversation=[Turn("user", text, images=1), Turn("assistant", right)],
        options=Options(right, wrong) if choose else None,
        boxes=() if name in WITHOUT_BOX else [Box(2, 2, 9, 9)],
    )


@cache
def batches(checkpoint: str, size: int = 4, **options: Any) -> list[MultimodalBatch]:
    data = Questions(checkpoint=checkpoint, eval_batch_size=size, **options)
    return list(data.plain_dataloader("test"))


@cache
def tokenizer(checkpoint: str) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


def load(checkpoint: str, dtype: torch.dtype = torch.float32, attention: Any = "sdpa") -> Backbone:
    return load_copy(checkpoint, dtype=dtype, attention=attention)


@dataclass(frozen=True)
class Examiner:
    """Says which answers are right without asking the model, only how they begin."""

    match: Match = "normalised"

    def evaluate(self, model: Any, tokenizer: Any, batch: MultimodalBatch) -> Sequence[OpenAnswer]:
        first_tokens = model(**batch.prompts().model_inputs()).logits[:, -1].argmax(-1).tolist()
        return [
            OpenAnswer(sample_id, kind, "", "", sample_id not in WRONG, first_token)
            for sample_id, kind, first_token in zip(
                batch.sample_ids, batch.kinds, first_tokens, strict=True
            )
            if kind is not None
        ]
