"""The families whose tiles come flat: InternVL, Aya Vision, Ovis 2, GOT-OCR 2."""

from __future__ import annotations

from typing import Any

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.parts import alternate, llm_part, siglip_part, square, tower_part
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import AYA, chatml_template

_SHUFFLE = 2  # patches along a side that become one token


def internvl(size: TinySize) -> Blueprint:
    """Return InternVL 3."""
    visual = size.joined(_SHUFFLE)
    side, patch = [size.image_size] * 2, [size.patch_size] * 2
    video = {"video_processor_type": "InternVLVideoProcessor", "size": square(size)}
    return Blueprint(
        tokens=SpecialTokens(
            "<|endoftext|>",
            "<|im_end|>",
            named={
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            },
            others=("<|im_start|>",),
        ),
        template=chatml_template("<IMG_CONTEXT>\n"),
        config={
            "model_type": "internvl",
            "vision_config": tower_part(size, image_size=side, patch_size=patch),
            "text_config": llm_part(size, model_type="qwen2"),
            "downsample_ratio": 1 / _SHUFFLE,
            "image_seq_length": visual,
            "tie_word_embeddings": False,
        },
        token_ids={"image_token_id": "<IMG_CONTEXT>"},
        image_processor="GotOcr2ImageProcessor",
        image_options=_tiles(size),
        processor="InternVLProcessor",
        options={"image_seq_length": visual},
        other_parts={"video_processor": video},
    )


def aya_vision(size: TinySize) -> Blueprint:
    """Return Aya Vision: SigLIP and a tied Command R, whose layers slide and see all in turn."""
    size.joined(_SHUFFLE)  # refuses what does not divide
    text = llm_part(
        size,
        model_type="cohere2",
        head_dim=size.head_dim,
        layer_types=alternate(size, "sliding_attention", "full_attention"),
        sliding_window=512,
    )
    return Blueprint(
        tokens=SpecialTokens(
            "<PAD>",
            "<|END_OF_TURN_TOKEN|>",
            "<BOS_TOKEN>",
            {"image_token": "<image>"},
            others=(
                *("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
                *("<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
                *("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"),
                *("TILE", "TILE_GLOBAL"),
            ),
        ),
        template=AYA,
        config={
            "model_type": "aya_vision",
            "vision_config": siglip_part(size),
            "text_config": text,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "downsample_factor": _SHUFFLE,
            "tie_word_embeddings": True,
        },
        token_ids={"image_token_id": "<|IMG_PATCH|>"},
        image_processor="GotOcr2ImageProcessor",
        image_options=_tiles(size),
        processor="AyaVisionProcessor",
        options={
            "patch_size": size.patch_size,
            "img_size": size.image_size,
            "downsample_factor": _SHUFFLE,
        },
    )


def ovis2(size: TinySize) -> Blueprint:
    """Return Ovis 2, where a patch is a mixture of visual words, which have their own embedding."""
    words = 64
    marks = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    vision = tower_part(
        size, hidden_stride=1, vocab_size=words, num_visual_indicator_tokens=len(marks)
    )
    return Blueprint(
        tokens=SpecialTokens(
            "<|endoftext|>",
            "<|im_end|>",
            named={"image_token": "<image>"},
            others=("<|im_start|>", "<IMG_ATOM>", *marks),
        ),
        template=chatml_template("<image>\n"),
        config={
            "model_type": "ovis2",
            "vision_config": vision,
            "text_config": llm_part(size, model_type="qwen2", tie_word_embeddings=True),
            "vocab_size": 0,
            "hidden_size": size.text_width,
            "tie_word_embeddings": True,
        },
        token_ids={"image_token_id": "<IMG_ATOM>", "visual_indicator_token_ids": marks},
        image_processor="Ovis2ImageProcessor",
        image_options=_tiles(size),
        processor="Ovis2Processor",
        options={"image_token": "<image>", "image_seq_length": size.grid**2},
    )


def got_ocr2(size: TinySize) -> Blueprint:
    """Return GOT-OCR 2, whose processor counts 256 tokens, so the tower has 4,096 patches."""
    side, patch = 128, 2
    vision = {
        "hidden_size": size.vision_width // 2,
        "output_channels": size.vision_width // 2,
        "mlp_dim": size.vision_width,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": 1,
        "image_size": side,
        "patch_size": patch,
        "window_size": 8,
        "global_attn_indexes": [size.vision_layers - 1],
    }
    return Blueprint(
        tokens=SpecialTokens(
            "<|endoftext|>",
            "<|im_end|>",
            named={"image_token": "<imgpad>"},
            others=("<|im_start|>", "<img>", "</img>"),
        ),
        template=chatml_template("<img><imgpad></img>\n", after=""),
        config={
            "model_type": "got_ocr2",
            "vision_config": vision,
            "text_config": llm_part(size, model_type="qwen2", tie_word_embeddings=True),
            "image_seq_length": (side // patch // 4) ** 2,
            "tie_word_embeddings": True,
        },
        token_ids={"image_token_id": "<imgpad>"},
        image_processor="GotOcr2ImageProcessor",
        image_options={"size": {"height": side, "width": side}},
        processor="GotOcr2Processor",
    )


def _tiles(size: TinySize) -> dict[str, Any]:
    return {"size": square(size), "crop_to_patches": True, "min_patches": 1, "max_patches": 4}
