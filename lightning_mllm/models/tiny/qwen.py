"""Qwen's families: flat patches of pictures of any size, and positions on three axes."""

from __future__ import annotations

from typing import Any

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.parts import alternate, llm_part, rope_part, rotary_sections
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import chatml_template

_TOKENS = SpecialTokens(
    "<|endoftext|>",
    "<|im_end|>",
    named={
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    others=("<|im_start|>", "<|vision_pad|>"),
)
_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def qwen2_vl(size: TinySize) -> Blueprint:
    """Return Qwen2-VL."""
    vision = _vision(size, embed_dim=size.vision_width, hidden_size=size.text_width, mlp_ratio=4)
    for name in ("intermediate_size", "out_hidden_size"):
        del vision[name]
    return _qwen2("qwen2_vl", "Qwen2VLProcessor", size, vision)


def qwen2_5_vl(size: TinySize) -> Blueprint:
    """Return Qwen2.5-VL, whose tower attends within windows in all layers but some."""
    window = 4 * size.patch_size
    vision = _vision(size, window_size=window, fullatt_block_indexes=[size.vision_layers - 1])
    return _qwen2("qwen2_5_vl", "Qwen2_5_VLProcessor", size, vision)


def qwen3_vl(size: TinySize) -> Blueprint:
    """Return Qwen3-VL, which adds features of the tower's layers between those of the LLM."""
    return _qwen3("qwen3_vl", size, _deepstack(size))


def qwen3_vl_moe(size: TinySize) -> Blueprint:
    """Return Qwen3-VL with four experts per layer, of which two act on a token."""
    experts: dict[str, Any] = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": size.text_width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return _qwen3("qwen3_vl_moe", size, _deepstack(size), **experts)


def qwen3_5(size: TinySize) -> Blueprint:
    """Return Qwen3.5, whose layers attend linearly and fully in turn; half of a head turns."""
    linear: dict[str, Any] = {
        "layer_types": alternate(size, "linear_attention", "full_attention"),
        "linear_key_head_dim": size.head_dim,
        "linear_value_head_dim": size.head_dim,
        "linear_num_key_heads": max(1, size.heads // 2),
        "linear_num_value_heads": size.heads,
    }
    vision = _vision(size, num_position_embeddings=size.grid**2)
    return _qwen3("qwen3_5", size, vision, turning=0.5, **linear)


def _deepstack(size: TinySize) -> dict[str, Any]:
    # what is added at an image after the last layer of the LLM would reach no answer
    taps = list(range(min(size.vision_layers, size.text_layers) - 1))
    positions = size.grid**2
    return _vision(size, deepstack_visual_indexes=taps, num_position_embeddings=positions)


def _vision(size: TinySize, **more: Any) -> dict[str, Any]:
    return {
        "depth": size.vision_layers,
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_heads": size.heads,
        "patch_size": size.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": size.text_width,
        **more,
    }


def _qwen2(family: str, processor: str, size: TinySize, vision: dict[str, Any]) -> Blueprint:
    rope = {"mrope_section": rotary_sections(size.head_dim // 2)}
    system = "You are a helpful assistant."
    return _qwen(
        family,
        size,
        vision,
        llm_part(size, rope_parameters=rope_part(rope)),
        template=chatml_template(_IMAGE, system),
        processor=processor,
        video="Qwen2VLVideoProcessor",
    )


def _qwen3(
    family: str, size: TinySize, vision: dict[str, Any], *, turning: float = 1.0, **more: Any
) -> Blueprint:
    half = int(turning * size.head_dim) // 2
    axis = 5 * half // 16
    rope = {
        "mrope_section": [half - 2 * axis, axis, axis],
        "mrope_interleaved": True,
        "partial_rotary_factor": turning,
    }
    return _qwen(
        family,
        size,
        vision,
        llm_part(size, head_dim=size.head_dim, rope_parameters=rope_part(rope), **more),
        template=chatml_template(_IMAGE),
        processor="Qwen3VLProcessor",
        video="Qwen3VLVideoProcessor",
        **_HALF,
    )


def _qwen(
    family: str,
    size: TinySize,
    vision: dict[str, Any],
    text: dict[str, Any],
    *,
    template: str,
    processor: str,
    video: str,
    **colours: Any,
) -> Blueprint:
    pixels = {
        "size": {"shortest_edge": size.image_size**2, "longest_edge": 9 * size.image_size**2},
        "patch_size": size.patch_size,
        "merge_size": 2,
        "temporal_patch_size": 2,
        **colours,
    }
    return Blueprint(
        tokens=_TOKENS,
        template=template,
        config={
            "model_type": family,
            "vision_config": vision,
            "text_config": text,
            "tie_word_embeddings": False,
        },
        token_ids={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        image_processor="Qwen2VLImageProcessor",
        image_options=pixels,
        processor=processor,
        other_parts={"video_processor": {"video_processor_type": video, **pixels}},
        ends=("<|endoftext|>",),
    )
