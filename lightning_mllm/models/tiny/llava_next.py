"""The families that cut a picture into tiles of a best-fitting grid: LLaVA-NeXT and its kin."""

from __future__ import annotations

from dataclasses import replace

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.llava import Chat, llava, llava_view_options
from lightning_mllm.models.tiny.parts import llm_part, pinpoints, siglip_part, square
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import GRANITE, ONEVISION


def llava_next(size: TinySize, chat: Chat = "vicuna") -> Blueprint:
    """Return LLaVA-NeXT (1.6)."""
    base = llava(size, chat)
    grids = {"image_grid_pinpoints": pinpoints(size)}
    return replace(
        base,
        config=base.config | grids | {"model_type": "llava_next"},
        image_processor="LlavaNextImageProcessor",
        image_options=base.image_options | grids,
        processor="LlavaNextProcessor",
    )


def granite_vision(size: TinySize) -> Blueprint:
    """Return Granite Vision 3: a LLaVA-NeXT that taps four layers of SigLIP, with Granite.

    Granite scales embeddings, attention and what a layer adds, and its head is its embedding.
    """
    base = llava_next(size)
    granite = llm_part(
        size,
        model_type="granite",
        embedding_multiplier=4.0,
        residual_multiplier=0.5,
        attention_multiplier=1 / size.head_dim,
        logits_scaling=8.0,
        tie_word_embeddings=True,
    )
    config = {
        "vision_config": siglip_part(size, num_hidden_layers=max(4, size.vision_layers)),
        "text_config": granite,
        "vision_feature_layer": [-4, -3, -2, -1],
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
    }
    end = "<|end_of_text|>"
    return replace(
        base,
        tokens=SpecialTokens(end, end, end, {"image_token": "<image>"}, adds_bos=False),
        template=GRANITE,
        config=base.config | config,
        image_options=base.image_options | {"size": square(size)},
        options=llava_view_options(size, full=True),
    )


def llava_onevision(size: TinySize) -> Blueprint:
    """Return LLaVA-OneVision: SigLIP, tiles that are shrunk if there are many, a tied Qwen2."""
    grids = {"image_grid_pinpoints": pinpoints(size)}
    return Blueprint(
        tokens=SpecialTokens(
            "<|endoftext|>",
            "<|im_end|>",
            named={"image_token": "<image>", "video_token": "<video>"},
            others=("<|im_start|>",),
        ),
        template=ONEVISION,
        config={
            "model_type": "llava_onevision",
            "vision_config": siglip_part(size),
            "text_config": llm_part(size, model_type="qwen2", tie_word_embeddings=True),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
            "tie_word_embeddings": True,
            **grids,
        },
        token_ids={"image_token_id": "<image>", "video_token_id": "<video>"},
        image_processor="LlavaOnevisionImageProcessor",
        image_options={"size": square(size), **grids},
        processor="LlavaOnevisionProcessor",
        options={
            "num_image_tokens": size.grid**2,
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
            "video_token": "<video>",
            "vision_aspect_ratio": "anyres_max_9",
        },
        other_parts={
            "video_processor": {
                "video_processor_type": "LlavaOnevisionVideoProcessor",
                "size": square(size),
            }
        },
    )


def granite4_vision(size: TinySize) -> Blueprint:
    """Return Granite 4 Vision: small transformers project the tower's layers to layers of the LLM.

    One of them reads a layer of the tower, four read each another patch of four; so the LLM has at
    least five layers, and the tower a width that 64 divides.
    """
    size.joined(2)
    base = granite_vision(size)
    width = 64 * max(1, size.vision_width // 64)
    layers = max(5, size.text_layers)
    text = base.config["text_config"] | {
        "model_type": "granite4_vision_text",
        "num_hidden_layers": layers,
        "intermediate_size": 2 * size.text_width,
    }
    vision = siglip_part(size, hidden_size=width, intermediate_size=width)
    projector = {
        "model_type": "blip_2_qformer",
        "num_hidden_layers": 1,
        "intermediate_size": width,
        "cross_attention_frequency": 1,
        "max_position_embeddings": 16,
        "use_qformer_text_input": False,
    }
    config = {
        "model_type": "granite4_vision",
        "vision_config": vision,
        "text_config": text,
        "qformer_config": projector,
        "vision_feature_layer": -2,  # as by default; it is not looked at
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_vision_layer": -1,
        "spatial_target_layers": [1, 2, 3, 4],
        "projector_dropout": 0.0,
    }
    return replace(
        base,
        config=base.config | config,
        processor="Granite4VisionProcessor",
        options=base.options | {"downsample_rate": "2/4"},
    )
