"""The families that resemble LLaVA-1.5: one view of a picture, and a projector that is an MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.parts import clip_part, llm_part, siglip_part, square, tower_part
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import CHAT_TEMPLATES, chatml_template

Chat = Literal["vicuna", "llama3"]

SPECIAL_TOKENS: dict[str, SpecialTokens] = {
    "vicuna": SpecialTokens("<pad>", "</s>", "<s>", {"image_token": "<image>"}),
    "llama3": SpecialTokens(
        "<pad>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        {
            "image_token": "<image>",
            "header_0_token": "<|start_header_id|>",
            "header_1_token": "<|end_header_id|>",
        },
    ),
}
QWEN2_CHAT = SpecialTokens(
    "<|endoftext|>",
    "<|im_end|>",
    named={"image_token": "<image>"},
    others=("<|im_start|>",),
)


def llava(size: TinySize, chat: Chat = "vicuna") -> Blueprint:
    """Return LLaVA-1.5: CLIP, and Llama with as many keys as queries."""
    return Blueprint(
        tokens=SPECIAL_TOKENS[chat],
        template=CHAT_TEMPLATES[chat],
        config={
            "model_type": "llava",
            "vision_config": clip_part(size),
            "text_config": llava_llm(size),
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "image_seq_length": size.grid**2,
            "tie_word_embeddings": False,
        },
        token_ids={"image_token_id": "<image>"},
        image_processor="CLIPImageProcessor",
        image_options=llava_views(size),
        processor="LlavaProcessor",
        options=llava_view_options(size),
    )


def vipllava(size: TinySize) -> Blueprint:
    """Return ViP-LLaVA, which taps several layers of CLIP."""
    base = llava(size)
    taps = [-2, -min(3, size.vision_layers), 1]
    config = base.config | {"model_type": "vipllava", "vision_feature_layers": taps}
    del config["vision_feature_layer"], config["vision_feature_select_strategy"]
    return replace(base, config=config)


def llava_siglip(size: TinySize) -> Blueprint:
    """Return a LLaVA of SigLIP, all of whose tokens are used, and a Qwen2 with a tied head."""
    config = {
        "vision_config": siglip_part(size),
        "text_config": llm_part(size, model_type="qwen2", tie_word_embeddings=True),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
    }
    base = llava(size)
    return replace(
        base,
        config=base.config | config,
        tokens=QWEN2_CHAT,
        template=chatml_template("<image>\n", after="", images_first=True),
        image_processor="SiglipImageProcessor",
        image_options={"size": square(size)},
        options=llava_view_options(size, full=True),
    )


def llava_dinov2(size: TinySize) -> Blueprint:
    """Return a LLaVA whose tower is a DINOv2, which has a class token and a mask token."""
    base = llava(size)
    vision = tower_part(size, model_type="dinov2", mlp_ratio=4)
    del vision["intermediate_size"]
    return replace(
        base,
        config=base.config | {"vision_config": vision},
        image_processor="BitImageProcessor",
        image_options=llava_views(size),
    )


def llava_vit(size: TinySize) -> Blueprint:
    """Return a LLaVA whose tower is a ViT, which has a class token and a pooler."""
    base = llava(size)
    return replace(
        base,
        config=base.config | {"vision_config": tower_part(size, model_type="vit")},
        image_processor="ViTImageProcessor",
        image_options={"size": square(size)},
    )


def llava_llm(size: TinySize) -> dict[str, Any]:
    """Return the options of a Llama with as many keys as queries."""
    return llm_part(size, model_type="llama", num_key_value_heads=size.heads)


def llava_views(size: TinySize) -> dict[str, Any]:
    """Return the options of an image processor that resizes and crops, as CLIP's does."""
    return {"size": {"shortest_edge": size.image_size}, "crop_size": square(size)}


def llava_view_options(size: TinySize, *, full: bool = False) -> dict[str, Any]:
    """Return the options of LLaVA's processors.

    Args:
        size: Shape of the checkpoint.
        full: Whether all of the tower's tokens are used, and it has no class token.
    """
    return {
        "patch_size": size.patch_size,
        "vision_feature_select_strategy": "full" if full else "default",
        "num_additional_image_tokens": 0 if full else 1,
        "image_token": "<image>",
    }
