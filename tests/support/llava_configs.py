"""The configs of LLaVA-1.5, so that nothing is fetched."""

from __future__ import annotations

from typing import Literal

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

LlavaSize = Literal["7B", "13B"]
LLAVA_SIZES: tuple[LlavaSize, ...] = ("7B", "13B")
_LLAMA = {"7B": (4096, 11008, 32), "13B": (5120, 13824, 40)}  # width, inner width, layers
_HEAD = 128


def llava_config(size: LlavaSize) -> LlavaConfig:
    """Return the config of LLaVA-1.5 of a size: 336 pixels, 576 visual tokens."""
    width, inner, layers = _LLAMA[size]
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD,
        vocab_size=32064,
        max_position_embeddings=4096,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    return LlavaConfig(text_config=text, vision_config=vision, image_token_index=32000)
