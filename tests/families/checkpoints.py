"""A tiny checkpoint of each family, with the samples and batches that its contract needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image, ImageDraw
from transformers import AutoTokenizer

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import MLLMDataModule
from lightning_mllm.models.assemble.checkpoint import assemble_checkpoint
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.tiny import TinyFamily, build_tiny_checkpoint
from lightning_mllm.types import Box, Options, Sample, Turn
from tests.support.loaded import load_copy
from tests.support.parts_apart import build_language_model, build_vision_tower

NAMES: tuple[str, ...] = get_args(TinyFamily)
ASSEMBLED = {  # by `lightning assemble`: tower and LLM
    "clip-llama": ("clip", "llama"),
    "siglip-qwen2": ("siglip", "qwen2"),
    "dinov2-gpt_neox": ("dinov2", "gpt_neox"),
    "clip-gemma": ("clip", "gemma"),
    "siglip-gpt_neox": ("siglip", "gpt_neox"),
    "dinov2-llama": ("dinov2", "llama"),
}
ALL_NAMES = (*NAMES, *ASSEMBLED)
ANSWERS = (("red", "blue"), ("blue", "red"), ("no", "yes"))
EAGER = {"got_ocr2", "paligemma2"}  # a part of the model takes no sdpa
# parts of these models compute in float32, whatever the dtype: how far logits may be off
LOGITS_OFF = {"paligemma": 1e-5, "paligemma2": 1e-5, "gemma4": 1e-3, "qwen3_5": 1e-3}
SINGLE = {"aria", "got_ocr2", "qwen3_vl_moe"}  # these don't run, or give NaN, in float64


def build_checkpoint(folder: Path, name: str) -> str:
    """Build a tiny checkpoint of a family, or of parts that were made apart."""
    if name not in ASSEMBLED:
        return str(build_tiny_checkpoint(folder, name))  # type: ignore[arg-type]
    vision, llm = ASSEMBLED[name]
    assemble_checkpoint(
        vision=build_vision_tower(folder / "vision", vision, torch.float32),
        llm=build_language_model(folder / "llm", llm, torch.float32),
        output=folder / "checkpoint",
    )
    return str(folder / "checkpoint")


def draw(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture with a coloured square in it."""
    image = Image.new("RGB", size, (30 * number % 255, 90, (200 - 20 * number) % 255))
    corner = 5 + number
    ImageDraw.Draw(image).rectangle((corner, 4, corner + 9, 14), fill=("red", "green")[number % 2])
    return image


class Shapes(MLLMDataModule):
    """Six questions about pictures of different shapes, of two kinds, one with options."""

    boxes = False

    def load(self, split: str) -> list[Sample]:
        samples = []
        for number in range(6):
            right, wrong = ANSWERS[number % 3]
            choose = number % 3 < 2
            text = f"Is it {right} or {wrong}?" if choose else "Is there any of the yellow shapes?"
            samples.append(
                Sample(
                    id=f"{split}-{number}",
                    images=[draw(number, (40 + 8 * number, 28))],
                    kind="choose/attr" if choose else "logical/obj",
                    conversation=[Turn("user", text, images=1), Turn("assistant", right)],
                    options=Options(right, wrong) if choose else None,
                    boxes=[Box(6, 5, 8, 8)] if self.boxes else (),
                )
            )
        return samples


class BoxedShapes(Shapes):
    """The same with boxes."""

    boxes = True


class Colours(MLLMDataModule):
    """Eight pictures of two classes."""

    def load(self, split: str) -> list[Sample]:
        names = ("red", "light green")
        return [
            Sample(id=f"{split}-{k}", images=[draw(k, (36, 28))], label=names[k % 2])
            for k in range(8)
        ]


@dataclass(frozen=True)
class TinyModel:
    """One tiny checkpoint.

    Attributes:
        name: Its family, or a variant of one.
        path: Its folder.
        scratch: A folder for what features write.
    """

    name: str
    path: str
    scratch: Path

    @property
    def attention(self) -> Any:
        return "eager" if self.name in EAGER else "sdpa"

    @property
    def double(self) -> torch.dtype:
        """The most precise dtype in which the model runs."""
        return torch.float32 if self.name in SINGLE else torch.float64

    @property
    def tolerance(self) -> float:
        """How far its logits may be off."""
        return 1e-4 if self.name in SINGLE else LOGITS_OFF.get(self.name, 1e-10)

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.path)

    @cached_property
    def batch(self) -> MultimodalBatch:
        """The first four questions."""
        return self.batches(Shapes)[0]

    def load(self, dtype: torch.dtype = torch.float32) -> Backbone:
        return load_copy(self.path, dtype=dtype, attention=self.attention)

    def batches(self, data: type[Shapes], **options: Any) -> list[MultimodalBatch]:
        made = data(checkpoint=self.path, eval_batch_size=4, **options)
        return list(made.plain_dataloader("test"))
