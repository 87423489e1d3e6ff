"""A tiny LLaVA whose tower is a SigLIP: no class token, and a processor without `crop_size`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessorPil,
)

_TOWER = {
    **{
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
    },
    **{"num_attention_heads": 4, "image_size": 28, "patch_size": 7},
}


def build_siglip_llava(
    llava: str, folder: Path, strategy: Literal["full", "default"] = "full"
) -> str:
    """Save a random model with tokenizer, template and LLM of another; return its folder."""
    shutil.copytree(llava, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = LlavaConfig.from_pretrained(llava).to_dict()
    config |= {"vision_config": _TOWER, "vision_feature_select_strategy": strategy}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = LlavaForConditionalGeneration(LlavaConfig(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(llava)
    processor.image_processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = strategy, 0
    processor.save_pretrained(folder)
    written = json.loads((folder / "processor_config.json").read_text())
    assert "crop_size" not in written["image_processor"]
    return str(folder)
