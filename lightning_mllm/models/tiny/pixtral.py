"""The families with Pixtral's tower, which reads pictures of any size row by row."""

from __future__ import annotations

from typing import Any

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.parts import llm, tower
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import MISTRAL


def llava_pixtral(size: TinySize) -> Blueprint:
    """Return Pixtral 12B as a LLaVA."""
    select = {"vision_feature_select_strategy": "full", "image_seq_length": 1}
    return _pixtral(size, "llava", 1, select)


def mistral3(size: TinySize) -> Blueprint:
    """Return Mistral Small 3, which joins four patches to a token."""
    return _pixtral(size, "mistral3", 2, {"spatial_merge_size": 2})


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
            "vision_config": tower(size, model_type="pixtral", image_size=longest),
            "text_config": llm(size, model_type="mistral", sliding_window=None),
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
