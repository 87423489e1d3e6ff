"""The families on Gemma: images are seen whole, PaliGemma's prompt too; heads are tied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_mllm.models.tiny.blueprint import Blueprint, SpecialTokens
from lightning_mllm.models.tiny.parts import alternate, llm_part, siglip_part, square, tower_part
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.templates import PALIGEMMA, gemma_template

_LINE_BREAKS = ("\n\n", "\n\n\n", "\n\n\n\n")  # each a token: breaks that meet are joined
_GEMMA3 = {
    "boi_token": "<start_of_image>",
    "image_token": "<image_soft_token>",
    "eoi_token": "<end_of_image>",
}
_GEMMA4 = {
    "boi_token": "<|image>",
    "image_token": "<|image|>",
    "eoi_token": "<image|>",
    "boa_token": "<|audio>",
    "audio_token": "<|audio|>",
    "eoa_token": "<audio|>",
    "video_token": "<|video|>",
}
_PLACES = (
    *(f"<loc{number:04}>" for number in range(1024)),
    *(f"<seg{number:03}>" for number in range(128)),
)
_WINDOW = 512
_SOFT_TOKENS = 70  # the fewest that Gemma 4's image processor accepts


def gemma3(size: TinySize, window: int = _WINDOW) -> Blueprint:
    """Return Gemma 3: SigLIP, layers that see a sliding window and layers that see all.

    Args:
        size: Shape of the checkpoint.
        window: Width of the window, in tokens.
    """
    opening, closing = "<start_of_turn>", "<end_of_turn>"
    visual = size.joined(2)
    return Blueprint(
        tokens=_tokens((opening, closing), _GEMMA3),
        template=gemma_template(opening, closing, "<start_of_image>"),
        config={
            "model_type": "gemma3",
            "vision_config": siglip_part(size),
            "text_config": _sliding(size, window, query_pre_attn_scalar=size.head_dim),
            "mm_tokens_per_image": visual,
        },
        token_ids=_token_ids(_GEMMA3, ("image", "boi", "eoi")),
        image_processor="Gemma3ImageProcessor",
        image_options={"size": square(size)},
        processor="Gemma3Processor",
        options={"image_seq_length": visual},
        ends=(closing,),
    )


def gemma3_narrow(size: TinySize) -> Blueprint:
    """Return a Gemma 3 whose window is narrower than a prompt."""
    return gemma3(size, window=8)


def gemma4(size: TinySize) -> Blueprint:
    """Return Gemma 4: pictures of any size, and further embeddings of a token in each layer."""
    opening, closing = "<|turn>", "<turn|>"
    text = _sliding(
        size,
        _WINDOW,
        global_head_dim=size.head_dim,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=0,
        num_kv_shared_layers=0,
    )
    vision = tower_part(
        size,
        num_key_value_heads=size.heads,
        head_dim=size.vision_width // size.heads,
        position_embedding_size=2 * _SOFT_TOKENS,
        pooling_kernel_size=2,
    )
    del vision["image_size"]
    pixels = {
        "patch_size": size.patch_size,
        "max_soft_tokens": _SOFT_TOKENS,
        "pooling_kernel_size": 2,
    }
    return Blueprint(
        tokens=_tokens((opening, closing), _GEMMA4),
        template=gemma_template(opening, closing, "<|image|>"),
        config={"model_type": "gemma4", "vision_config": vision, "text_config": text},
        token_ids=_token_ids(_GEMMA4, ("image", "boi", "eoi", "audio", "video")),
        image_processor="Gemma4ImageProcessor",
        image_options=pixels,
        processor="Gemma4Processor",
        options={
            "image_seq_length": _SOFT_TOKENS,
            "audio_seq_length": 750,
            "audio_ms_per_token": 40,
        },
        other_parts={
            "video_processor": {"video_processor_type": "Gemma4VideoProcessor", **pixels},
            "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        },
        ends=(closing,),
    )


def paligemma(size: TinySize) -> Blueprint:
    """Return PaliGemma, which sees its whole prompt, not only what stands before."""
    text = llm_part(size, model_type="gemma", head_dim=size.head_dim, num_key_value_heads=1)
    named = {"image_token": "<image>"}
    return Blueprint(
        tokens=replace(_tokens((), named), plain=(*_LINE_BREAKS, *_PLACES), adds_bos=False),
        template=PALIGEMMA,
        config={
            "model_type": "paligemma",
            "vision_config": siglip_part(size, projection_dim=size.text_width),
            "text_config": text,
            "projection_dim": size.text_width,
        },
        token_ids={"image_token_id": "<image>"},
        image_processor="SiglipImageProcessor",
        image_options={"size": square(size), "image_seq_length": size.grid**2},
        processor="PaliGemmaProcessor",
    )


def paligemma2(size: TinySize) -> Blueprint:
    """Return PaliGemma 2: on Gemma 2, whose logits are capped softly."""
    base = paligemma(size)
    text = llm_part(
        size,
        model_type="gemma2",
        head_dim=size.head_dim,
        query_pre_attn_scalar=size.head_dim,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
    )
    return replace(base, config=base.config | {"text_config": text})


def _tokens(others: tuple[str, ...], named: dict[str, str]) -> SpecialTokens:
    return SpecialTokens("<pad>", "<eos>", "<bos>", named, others, plain=_LINE_BREAKS)


def _token_ids(named: dict[str, str], names: tuple[str, ...]) -> dict[str, str | list[str]]:
    return {f"{name}_token_id": named[f"{name}_token"] for name in names}


def _sliding(size: TinySize, window: int, **more: Any) -> dict[str, Any]:
    return llm_part(
        size,
        head_dim=size.head_dim,
        sliding_window=window,
        layer_types=alternate(size, "sliding_attention", "full_attention"),
        **more,
    )
