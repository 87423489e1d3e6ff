"""The families with Pixtral's tower, which reads pictures of any size row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.parts import llm_part, tower_part
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import MISTRAL, chatml_template


def llava_pixtral(size: TinySize) -> Blueprint:
    """Return Pixtral 12B as a LLaVA."""
    select = {"vision_feature_select_strategy": "full", "image_seq_length": 1}
    return _pixtral(size, "llava", 1, select)


def mistral3(size: TinySize) -> Blueprint:
    """Return Mistral Small 3, which joins four patches to a token."""
    return _pixtral(size, "mistral3", 2, {"spatial_merge_size": 2})


def lighton_ocr(size: TinySize) -> Blueprint:
    """Return LightOnOCR: Pixtral's tower and a tied Qwen3."""
    base = mistral3(size)
    text = llm_part(size, model_type="qwen3", head_dim=size.head_dim, tie_word_embeddings=True)
    names = ("vision_config", "spatial_merge_size")
    kept = {name: base.config[name] for name in names}
    return replace(
        base,
        tokens=SpecialTokens(
            "<|endoftext|>",
            "<|im_end|>",
            named={
                "image_token": "<|image_pad|>",
                "image_break_token": "<|vision_pad|>",
                "image_end_token": "<|vision_end|>",
            },
            others=("<|im_start|>", "<|vision_start|>"),
        ),
        template=chatml_template("<|image_pad|>"),
        config={
            "model_type": "lighton_ocr",
            "text_config": text,
            "tie_word_embeddings": True,
            **kept,
        },
        token_ids={"image_token_id": "<|image_pad|>"},
        processor="LightOnOcrProcessor",
        options={"patch_size": size.patch_size, "spatial_merge_size": 2},
    )


def _pixtral(size: TinySize, family: str, merge: int, options: dict[str, Any]) -> Blueprint:
    patch = merge * size.patch_size
    longest = 3 * size.image_size
    return Blueprint(
        tokens=SpecialTokens(
            "<pad>",
            "</s>",
            "<s>",
            {"image_token": "[IMG]"},
            others=(
                *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
                *("[IMG_BREAK]", "[IMG_END]"),
            ),
        ),
        template=MISTRAL,
        config={
            "model_type": family,
            "vision_config": tower_part(size, model_type="pixtral", image_size=longest),
            "text_config": llm_part(size, model_type="mistral", sliding_window=None),
            "vision_feature_layer": -1,
            "tie_word_embeddings": False,
            **options,
        },
        token_ids={"image_token_id": "[IMG]"},
        image_processor="PixtralImageProcessor",
        image_options={
            "size": {"longest_edge": longest},
            "patch_size": {"height": patch, "width": patch},
        },
        processor="PixtralProcessor",
        options={
            "patch_size": size.patch_size,
            "spatial_merge_size": merge,
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
    )
