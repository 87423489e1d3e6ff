"""Tiny dual encoders in the Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

DualEncoder = Literal["clip", "siglip"]

_SIDE = 28
CONTEXT = 48  # tokens of a text; here each letter is one


def build_clip(folder: Path, family: DualEncoder = "clip") -> str:
    """Save a random model whose predictions differ from picture to picture; return its folder."""
    tokenizer = _tokenizer()
    tower: dict[str, Any] = {
        **{
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    }
    vision = {**tower, "image_size": _SIDE, "patch_size": 7}
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        **{
            f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id")
            for kind in ("bos", "eos", "pad")
        },
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model: Any
        if family == "clip":
            model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        else:
            model = SiglipModel(
                SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision)
            )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    square = {"height": _SIDE, "width": _SIDE}
    processor: Any
    if family == "clip":
        images = CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=square)
        processor = CLIPProcessor(images, tokenizer)
    else:
        processor = SiglipProcessor(SiglipImageProcessorPil(size=square), tokenizer)
    processor.save_pretrained(folder)
    return str(folder)


def _tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
