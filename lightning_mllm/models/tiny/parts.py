"""Towers and LLMs that several families share, as options of their configs."""

from __future__ import annotations

from typing import Any

from lightning_mllm.models.tiny.size import TinySize


def llm_part(size: TinySize, **more: Any) -> dict[str, Any]:
    """Return the options of an LLM with grouped queries; sizes of a vocabulary are filled in."""
    return {
        "vocab_size": 0,
        "hidden_size": size.text_width,
        "intermediate_size": 4 * size.text_width,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": max(1, size.heads // 2),
        "max_position_embeddings": size.context,
        **more,
    }


def tower_part(size: TinySize, **more: Any) -> dict[str, Any]:
    """Return the options of a vision transformer."""
    return {
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_hidden_layers": size.vision_layers,
        "num_attention_heads": size.heads,
        "image_size": size.image_size,
        "patch_size": size.patch_size,
        **more,
    }


def clip_part(size: TinySize) -> dict[str, Any]:
    """Return the options of a CLIP tower."""
    return tower_part(size, model_type="clip_vision_model", projection_dim=size.vision_width)


def siglip_part(size: TinySize, **more: Any) -> dict[str, Any]:
    """Return the options of a SigLIP tower without its pooling head."""
    return tower_part(size, model_type="siglip_vision_model", vision_use_head=False, **more)


def alternate(size: TinySize, first: str, second: str) -> list[str]:
    """Return the kinds of the LLM's layers, which alternate."""
    return [(first, second)[number % 2] for number in range(size.text_layers)]


def square(size: TinySize) -> dict[str, int]:
    """Return the size of a view, as image processors take it."""
    return {"height": size.image_size, "width": size.image_size}


def pinpoints(size: TinySize) -> list[list[int]]:
    """Return the heights and widths, in pixels, that a picture of several tiles may have."""
    side = size.image_size
    tiles = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]
    return [[rows * side, columns * side] for rows, columns in tiles]


def rotary_sections(half: int) -> list[int]:
    """Return how many frequencies of a head turn with time, with the row and with the column."""
    axis = 3 * half // 8
    return [half - 2 * axis, axis, axis]


def rope_part(more: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a rotary position embedding."""
    return {"rope_type": "default", "rope_theta": 10000.0, **more}
