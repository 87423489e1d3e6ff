"""Tiny checkpoints of all families, samples for them, and what a family's own processor makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.text.chat_messages import build_messages
from lightning_mllm.data.text.turns import put_images_first_in_turn
from lightning_mllm.types import Sample, Turn
from tests.support.feature_samples import picture

VICUNA_LIKE = ("llava", "llava_dinov2", "llava_vit", "llava_next", "vipllava")
SPLIT = ("idefics3", "smolvlm")
PREFIX = ("paligemma", "paligemma2")
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "paddleocr_vl")
FAMILIES = (
    *VICUNA_LIKE,
    *("llava_siglip", "llava_pixtral", "granite_vision", "llava_onevision", "mistral3"),
    *("lighton_ocr", "ovis2", "granite4_vision"),
    *("internvl", "aya_vision", *SPLIT, *MROPE, "gemma3", "gemma4", *PREFIX),
)
ONE_IMAGE = ("llava_onevision",)


ONE = Sample(
    id="one",
    images=[picture(1, (56, 28))],
    conversation=[Turn("user", "What is it?", images=1), Turn("assistant", "red")],
)
WITHIN = Sample(
    id="within",
    images=[picture(2, (56, 28)), picture(3, (40, 64))],
    conversation=[
        Turn("user", "Is  older than , or not?", "Answer.", images=2, places=(3, 15)),
        Turn("assistant", "yes"),
    ],
)
TEXT = Sample(
    id="text",
    conversation=[Turn("user", "What is two and two?"), Turn("assistant", "four")],
)
TURNS = Sample(
    id="turns",
    images=[picture(4, (30, 60)), picture(5, (60, 30))],
    conversation=[
        Turn("user", "One?", images=1),
        Turn("assistant", "yes"),
        Turn("user", "Two?", images=1),
        Turn("assistant", "no"),
    ],
)
SYSTEM = Sample(
    id="system", system="Be brief.", images=ONE.images, conversation=[*ONE.conversation]
)
SAMPLES = (ONE, WITHIN, TEXT, TURNS, SYSTEM)


def reads(family: str, sample: Sample) -> bool:
    """Return whether a family reads a sample; it refuses the others."""
    if family in ONE_IMAGE:
        return len(sample.images) < 2
    return family not in PREFIX or len(sample.conversation) == 2


def readable(family: str, *samples: Sample) -> list[Sample]:
    return [sample for sample in samples if reads(family, sample)]


def ask_own(collator: Collator, family: str, sample: Sample) -> str:
    """Write a sample's prompt as a user of transformers does: with the chat template alone.

    PaliGemma's processor writes around a bare text; Vicuna's templates write no end of an answer,
    which this package writes as it is trained.
    """
    dialogue = collator.prompt.dialogue(sample, (), 0)
    if not collator.renderer.keeps_places:
        dialogue = type(dialogue)(
            tuple(map(put_images_first_in_turn, dialogue.turns)),
            dialogue.system,
            joint=dialogue.joint,
        )
    messages, texts = build_messages(dialogue)
    if family in PREFIX:
        turn = dialogue.turns[0]
        words = turn.text + (f"\n{turn.instruction}" if turn.instruction else "")
        return collator.processor.placeholder * len(sample.images) + words
    written = collator.renderer.template.run(messages.to_list(texts)[:-1], True)
    end = str(collator.processor.tokenizer.eos_token)
    if family in VICUNA_LIKE:
        for turn in dialogue.turns[1:-1:2]:
            written = written.replace(f"{turn.text} ", f"{turn.text}{end}")
    return written


def call_own(
    processor: CheckpointProcessor, texts: list[str], images: Sequence[Any], **options: Any
) -> dict[str, Any]:
    """Call a family's own processor as `apply_chat_template` does; `images` are one per text."""
    bos = processor.tokenizer.bos_token
    if bos is not None and texts[0].startswith(bos):
        options["add_special_tokens"] = False
    own: Any = processor.hf
    given = [list(shown) for shown in images] if any(map(len, images)) else None
    return dict(own(text=texts, images=given, return_tensors="pt", **options))


def join_rows(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of images with one image per row, without views that are padding.

    Idefics 3 lines all views of a sample up in one row.
    """
    joined = {}
    for name in ("pixel_values", "pixel_attention_mask"):
        views = inputs[name].flatten(0, 1)
        real = inputs["pixel_attention_mask"].flatten(0, 1).flatten(1).any(1)
        joined[name] = views[real]
    return joined
