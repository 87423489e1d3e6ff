"""The families that a tiny checkpoint can have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lightning_mllm.errors import ConfigError, did_you_mean
from lightning_mllm.models.tiny.aria import aria
from lightning_mllm.models.tiny.blueprint import Blueprint
from lightning_mllm.models.tiny.gemma import gemma3, gemma3_narrow, gemma4, paligemma, paligemma2
from lightning_mllm.models.tiny.idefics import idefics3, smolvlm
from lightning_mllm.models.tiny.llava import (
    Chat,
    llava,
    llava_dinov2,
    llava_siglip,
    llava_vit,
    vipllava,
)
from lightning_mllm.models.tiny.llava_next import (
    granite4_vision,
    granite_vision,
    llava_next,
    llava_onevision,
)
from lightning_mllm.models.tiny.patches import glm4v, paddleocr_vl
from lightning_mllm.models.tiny.pixtral import lighton_ocr, llava_pixtral, mistral3
from lightning_mllm.models.tiny.qwen import qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl, qwen3_vl_moe
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.tiled import aya_vision, got_ocr2, internvl, ovis2

TinyFamily = Literal[
    "llava",
    "llava_dinov2",
    "llava_pixtral",
    "llava_siglip",
    "llava_vit",
    "llava_next",
    "granite_vision",
    "vipllava",
    "llava_onevision",
    "mistral3",
    "internvl",
    "idefics3",
    "smolvlm",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "gemma3",
    "gemma3_narrow",
    "gemma4",
    "paligemma",
    "paligemma2",
    "aya_vision",
    "got_ocr2",
    "ovis2",
    "lighton_ocr",
    "glm4v",
    "paddleocr_vl",
    "aria",
    "granite4_vision",
]
_WITH_CHAT: dict[str, Callable[[TinySize, Chat], Blueprint]] = {
    "llava": llava,
    "llava_next": llava_next,
}
_OTHERS: dict[str, Callable[[TinySize], Blueprint]] = {
    "llava_dinov2": llava_dinov2,
    "llava_pixtral": llava_pixtral,
    "llava_siglip": llava_siglip,
    "llava_vit": llava_vit,
    "granite_vision": granite_vision,
    "vipllava": vipllava,
    "llava_onevision": llava_onevision,
    "mistral3": mistral3,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "gemma3": gemma3,
    "gemma3_narrow": gemma3_narrow,
    "gemma4": gemma4,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "aya_vision": aya_vision,
    "got_ocr2": got_ocr2,
    "ovis2": ovis2,
    "lighton_ocr": lighton_ocr,
    "glm4v": glm4v,
    "paddleocr_vl": paddleocr_vl,
    "aria": aria,
    "granite4_vision": granite4_vision,
}


def blueprint_by_name(family: TinyFamily, size: TinySize, chat: Chat | None) -> Blueprint:
    """Return what a checkpoint of a family holds.

    Raises:
        ConfigError: There is no such family, or it has one chat template only and `chat` names one.
    """
    if family in _WITH_CHAT:
        return _WITH_CHAT[family](size, chat or "vicuna")
    if family not in _OTHERS:
        names = [*_WITH_CHAT, *_OTHERS]
        raise ConfigError(
            f"There is no tiny checkpoint of the family {family!r}. Expected one of: "
            f"{', '.join(names)}.{did_you_mean(family, names)}"
        )
    if chat is not None:
        raise ConfigError(
            f"The family {family} has a chat template of its own, and chat is {chat!r}. Leave chat "
            f"out, or choose one of the families {' and '.join(_WITH_CHAT)}, which have several."
        )
    return _OTHERS[family](size)
