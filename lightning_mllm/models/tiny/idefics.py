"""Idefics 3 and SmolVLM: a picture in rows and columns, with a token for each place."""

from __future__ import annotations

from typing import Any

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.llava import llava_llm
from lightning_mllm.models.tiny.parts import tower_part
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import IDEFICS

_SHUFFLE = 2  # patches along a side that become one token
_PLACES = tuple(f"<row_{number // 6 + 1}_col_{number % 6 + 1}>" for number in range(36))
_NAMED = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def idefics3(size: TinySize) -> Blueprint:
    """Return Idefics 3."""
    tokens = SpecialTokens(
        "<|reserved_special_token_0|>", "<end_of_utterance>", "<|begin_of_text|>", _NAMED, _PLACES
    )
    return _idefics(size, "idefics3", "Idefics3", tokens, {})


def smolvlm(size: TinySize) -> Blueprint:
    """Return SmolVLM, which also sees videos."""
    tokens = SpecialTokens(
        "<|im_end|>", "<end_of_utterance>", "<|im_start|>", _NAMED, _PLACES, adds_bos=False
    )
    side = {"longest_edge": size.image_size}
    video = {
        "video_processor_type": "SmolVLMVideoProcessor",
        "size": side,
        "max_image_size": side,
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": side},
    }
    return _idefics(size, "smolvlm", "SmolVLM", tokens, {"video_processor": video})


def _idefics(
    size: TinySize,
    family: str,
    name: str,
    tokens: SpecialTokens,
    other_parts: dict[str, dict[str, Any]],
) -> Blueprint:
    return Blueprint(
        tokens=tokens,
        template=IDEFICS,
        config={
            "model_type": family,
            "vision_config": tower_part(size),
            "text_config": llava_llm(size),
            "scale_factor": _SHUFFLE,
            "tie_word_embeddings": False,
        },
        token_ids={"image_token_id": "<image>", "pad_token_id": tokens.pad},
        image_processor=f"{name}ImageProcessor",
        image_options={
            "size": {"longest_edge": 2 * size.image_size},
            "max_image_size": {"longest_edge": size.image_size},
        },
        processor=f"{name}Processor",
        options={"image_seq_len": size.joined(_SHUFFLE)},
        other_parts=other_parts,
    )
