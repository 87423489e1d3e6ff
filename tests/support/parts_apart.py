"""Small vision towers and language models that were made apart, as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
    ViTConfig,
)

from lightning_mllm.models.tiny.blueprint import SpecialTokens
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.tokenizer import CORPUS, train_tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIDE, PATCH = 28, 7

_SQUARE = {"height": SIDE, "width": SIDE}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_CLIP_TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_LLM: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_TOWERS: dict[str, tuple[Callable[..., PretrainedConfig], dict[str, Any]]] = {
    "clip": (CLIPVisionConfig, {"intermediate_size": 64}),
    "siglip": (SiglipVisionConfig, {"intermediate_size": 64}),
    "dinov2": (Dinov2Config, {}),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, {}),
    "vit": (ViTConfig, {"intermediate_size": 64}),
}
_LLMS: dict[str, tuple[Callable[..., PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "gemma": (GemmaConfig, {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (Gemma2Config, {"head_dim": 16, "num_key_value_heads": 2}),
    "phi": (PhiConfig, {}),
}
_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip": ("SiglipImageProcessor", {"size": _SQUARE}),
    "vit": ("ViTImageProcessor", {"size": _SQUARE}),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": _SQUARE}),
}
_CLIP_PROCESSOR = ("CLIPImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": _SQUARE})


def build_vision_tower(folder: Path, kind: str, dtype: torch.dtype = torch.float64) -> str:
    """Save a tower with its image processor; `whole_clip` is a CLIP with its text tower."""
    if kind == "whole_clip":
        vision = CLIPVisionConfig(**_TOWER, intermediate_size=64).to_dict()
        config: Any = CLIPConfig(vision_config=vision, text_config=_CLIP_TEXT)
    else:
        make, options = _TOWERS[kind]
        config = make(**_TOWER, **options)
    torch.manual_seed(2)
    AutoModel.from_config(config).to(dtype).save_pretrained(folder)
    name, options = _PROCESSORS.get(kind.partition("_")[0], _CLIP_PROCESSOR)
    getattr(transformers, f"{name}Pil")(**options).save_pretrained(folder)
    return str(folder)


def build_language_model(
    folder: Path, kind: str, dtype: torch.dtype = torch.float64, spare: int = 0, **options: Any
) -> str:
    """Save a language model with a chat template.

    Args:
        folder: Folder to create.
        kind: Model type.
        dtype: Dtype of the weights.
        spare: Rows of the embedding without a token.
        **options: Options of the config.
    """
    tokens = SpecialTokens("<|endoftext|>", "<|im_end|>", others=("<|im_start|>",))
    tokenizer = train_tokenizer(tokens, TinySize(), CORPUS, "")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    make, own = _LLMS[kind]
    torch.manual_seed(1)
    config = make(vocab_size=len(tokenizer) + spare, **(_LLM | own | options))
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return str(folder)
