"""Further families of flat patches: GLM-4.1V and PaddleOCR-VL."""

from __future__ import annotations

from typing import Any

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.parts import llm_part, rope_part, rotary_sections, tower_part
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import GLM, PADDLE

_GLM_MARKS = {
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}


def glm4v(size: TinySize) -> Blueprint:
    """Return GLM-4.1V, half of whose heads turn, and which ends an answer where a user begins."""
    pixels = _pixels(size, temporal=2)
    rope = {
        "partial_rotary_factor": 0.5,
        "mrope_section": rotary_sections(size.head_dim // 4),
    }
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_heads": size.heads,
        "image_size": size.image_size,
        "patch_size": size.patch_size,
        "out_hidden_size": size.text_width,
    }
    return Blueprint(
        tokens=SpecialTokens(
            "<|endoftext|>",
            "<|endoftext|>",
            named={"image_token": "<|image|>", "video_token": "<|video|>"},
            others=(
                *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
                *("<|observation|>", *_GLM_MARKS.values()),
            ),
        ),
        template=GLM,
        config={
            "model_type": "glm4v",
            "vision_config": vision,
            "text_config": llm_part(size, rope_parameters=rope_part(rope)),
            "tie_word_embeddings": False,
        },
        token_ids={
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            **_GLM_MARKS,
        },
        image_processor="Glm4vImageProcessor",
        image_options=pixels,
        processor="Glm4vProcessor",
        other_parts={"video_processor": {"video_processor_type": "Glm4vVideoProcessor", **pixels}},
        ends=("<|user|>", "<|observation|>"),
    )


def paddleocr_vl(size: TinySize) -> Blueprint:
    """Return PaddleOCR-VL: pictures of one frame, and a tied ERNIE."""
    text = llm_part(
        size,
        head_dim=size.head_dim,
        rope_parameters=rope_part({"mrope_section": rotary_sections(size.head_dim // 2)}),
        tie_word_embeddings=True,
    )
    image, start, end = "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"
    return Blueprint(
        tokens=SpecialTokens(
            "<unk>",
            "</s>",
            "<s>",
            named={"image_token": image},
            others=("<|begin_of_sentence|>", start, end, "<|video_pad|>"),
            adds_bos=False,
        ),
        template=PADDLE,
        config={
            "model_type": "paddleocr_vl",
            "vision_config": tower_part(size),
            "text_config": text,
            "tie_word_embeddings": True,
        },
        token_ids={
            "image_token_id": image,
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": start,
            "vision_end_token_id": end,
        },
        image_processor="PaddleOCRVLImageProcessor",
        image_options=_pixels(size, temporal=1),
        processor="PaddleOCRVLProcessor",
    )


def _pixels(size: TinySize, temporal: int) -> dict[str, Any]:
    return {
        "size": {"shortest_edge": size.image_size**2, "longest_edge": 9 * size.image_size**2},
        "patch_size": size.patch_size,
        "merge_size": 2,
        "temporal_patch_size": temporal,
    }
