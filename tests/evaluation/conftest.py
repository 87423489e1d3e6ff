"""A batch made by hand, so that evaluation is tested without the data package."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_mllm.batches import MultimodalBatch, TokenSpans, map_image
from lightning_mllm.models.tiny import TinyFamily, build_tiny_checkpoint
from lightning_mllm.types import IGNORE_INDEX, LabelSet, Segment

NAMES = ("zero", "one", "two", "seven eight nine", "one two", "a")
PROMPTS = (
    "USER: <image>\nWhat? ASSISTANT:",
    "USER: <image>\nClassify the image into one of the following categories of handwritten "
    "digits. ASSISTANT:",
    "USER: <image>\nzero, one or two? ASSISTANT:",
)
SIZES = ((28, 28), (30, 50), (70, 28))


@dataclass(frozen=True)
class Scene:
    """A tiny model and three ragged prompts about three images, the answer behind each."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch: MultimodalBatch
    labels: LabelSet

    def batch_of(self, indices: list[int]) -> MultimodalBatch:
        """Return the batch made of the given samples only."""
        return make_batch(
            self.processor, [PROMPTS[i] for i in indices], [SIZES[i] for i in indices], indices
        )

    @property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.model.name_or_path)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[TinyFamily, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "llava": build_tiny_checkpoint(folder / "llava", "llava"),
        "llava_next": build_tiny_checkpoint(folder / "llava_next", "llava_next"),
    }


@pytest.fixture(
    params=[("llava", "sdpa"), ("llava", "eager"), ("llava_next", "sdpa"), ("llava_next", "eager")],
    ids="-".join,
)
def scene(request: pytest.FixtureRequest, checkpoints: dict[TinyFamily, Path]) -> Scene:
    family, attention = request.param
    return make_scene(checkpoints[family], attention)


@pytest.fixture
def llava(checkpoints: dict[TinyFamily, Path]) -> Scene:
    return make_scene(checkpoints["llava"], "sdpa")


def make_scene(folder: Path, attention: str) -> Scene:
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=attention)
    token_ids = [
        processor.tokenizer(f" {name}</s>", add_special_tokens=False)["input_ids"] for name in NAMES
    ]
    return Scene(
        model=model,
        tokenizer=processor.tokenizer,
        batch=make_batch(processor, PROMPTS, SIZES, range(len(PROMPTS))),
        labels=LabelSet(NAMES, tuple(map(tuple, token_ids))),
    )


def make_batch(processor: Any, prompts: Any, sizes: Any, seeds: Any) -> MultimodalBatch:
    """Encode prompts with an answer, padded on the right; LAST is the prompts' last token."""
    images = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))
        for seed, size in zip(seeds, sizes, strict=True)
    ]
    options = {"return_tensors": "pt", "padding": True, "padding_side": "right"}
    alone = processor(images=images, text=list(prompts), **options)
    whole = processor(images=images, text=[f"{prompt} three</s>" for prompt in prompts], **options)
    ids, mask = whole.pop("input_ids"), whole.pop("attention_mask")
    last = torch.zeros_like(mask, dtype=torch.bool)
    last[torch.arange(len(mask)), alone["attention_mask"].sum(dim=1) - 1] = True
    return MultimodalBatch(
        input_ids=ids,
        attention_mask=mask,
        labels=torch.full_like(ids, IGNORE_INDEX),
        spans=TokenSpans({Segment.LAST: last}),
        targets=torch.arange(len(mask)),
        sample_ids=tuple(f"sample-{seed}" for seed in seeds),
        pictures=tuple(f"sample-{seed}" for seed in seeds),
        kinds=(None,) * len(mask),
        answers=(None,) * len(mask),
        images=tuple(map_image(itemgetter(slice(k, k + 1)), whole) for k in range(len(mask))),
        image_counts=(1,) * len(mask),
        pad_id=processor.tokenizer.pad_token_id,
        end_id=processor.tokenizer.eos_token_id,
        steps=mask,
    )


def generated(scene: Scene, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> dict[str, Any]:
    """Make the model say `texts`; returns the options that `generate` will be called with."""
    seen: dict[str, Any] = {}
    answers = scene.tokenizer(
        [f" {text}</s>" for text in texts], add_special_tokens=False, padding_side="right"
    )
    new = torch.tensor(scene.tokenizer.pad(answers, padding_side="right")["input_ids"])

    def generate(**options: Any) -> torch.Tensor:
        seen.update(options | options["generation_config"].to_dict())
        return torch.cat([options["input_ids"], new[:, : seen["max_new_tokens"]]], dim=1)

    monkeypatch.setattr(scene.model, "generate", generate)
    return seen
