"""Aria: a tower of Idefics', queries that read it, and an LLM of experts."""

from __future__ import annotations

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.llava import llava_llm
from lightning_mllm.models.tiny.parts import tower_part
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import ARIA

_SIDE = 980  # of the pictures that Aria's processor always asks for, in pixels


def aria(size: TinySize) -> Blueprint:
    """Return Aria, whose processor fixes the size of a picture: 20 x 20 patches of 49 pixels."""
    patch = _SIDE // 20
    width = size.vision_width // 2
    queries = size.grid**2
    text = llava_llm(size) | {
        "model_type": "aria_text",
        "intermediate_size": size.text_width,
        "moe_num_experts": 4,
        "moe_topk": 2,
        "moe_num_shared_experts": 2,
    }
    vision = tower_part(
        size,
        model_type="idefics3_vision",
        hidden_size=width,
        intermediate_size=4 * width,
        image_size=_SIDE,
        patch_size=patch,
    )
    return Blueprint(
        tokens=SpecialTokens(
            "<unk>",
            "<|im_end|>",
            "<s>",
            named={"image_token": "<|img|>"},
            others=("<|im_start|>", "<fim_prefix>", "<fim_suffix>"),
            adds_bos=False,
        ),
        template=ARIA,
        config={
            "model_type": "aria",
            "vision_config": vision,
            "text_config": text,
            "projector_patch_to_query_dict": {(_SIDE // patch) ** 2: queries},
            "tie_word_embeddings": False,
        },
        token_ids={"image_token_id": "<|img|>"},
        image_processor="AriaImageProcessor",
        image_options={"max_image_size": _SIDE},
        processor="AriaProcessor",
        options={"size_conversion": {str(_SIDE): queries}},
    )
