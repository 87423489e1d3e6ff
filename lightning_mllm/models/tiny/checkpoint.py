"""Builds a tiny checkpoint from its blueprint and saves it in the Hugging Face format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.tiny.blueprint import Blueprint
from lightning_mllm.models.tiny.initialise import initialise
from lightning_mllm.models.tiny.llava import Chat
from lightning_mllm.models.tiny.names import TinyFamily, blueprint_by_name
from lightning_mllm.models.tiny.size import TinySize
from lightning_mllm.models.tiny.tokenizer import CORPUS, train_tokenizer
from lightning_mllm.store.files import replacing_folder


def build_tiny_checkpoint(
    output: Path,
    family: TinyFamily = "llava",
    chat: Chat | None = None,
    size: TinySize | None = None,
    *,
    seed: int = 0,
    corpus: str = CORPUS,
    to_train: bool = False,
) -> Path:
    """Build a small checkpoint with random weights and save it as a Hugging Face folder.

    Args:
        output: Folder to create; it must not exist, or be empty.
        family: Model type, or a variant of one. `llava` (1.5) also comes with another tower
            (`llava_siglip`, `llava_pixtral`, `llava_dinov2`, `llava_vit`), `llava_next` (1.6) as
            `granite_vision`; `gemma3_narrow` has a sliding window narrower than a prompt, and
            `paligemma2` soft-capped logits.
        chat: Chat template and special tokens of `llava` and `llava_next`: those of Vicuna, which
            is what they have by default, or of Llama 3. Any other family has its own.
        size: Shape of the model.
        seed: Seed of the weights; the global random state does not change.
        corpus: Text that the tokenizer's byte-pair merges are learnt from.
        to_train: Whether weights are scaled for a model that is trained from scratch: layers add
            less to the residual stream (GPT-2's rule), and positions are weaker. A random LLM that
            stays frozen passes on more without it.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder has something in it; there is no such family; or `chat` is given for
            a family that has its own.
    """
    output, size = Path(output), size or TinySize()
    if output.exists() and any(output.iterdir()):
        raise ConfigError(
            f"{output} is not empty, and nothing is overwritten. Choose another folder or remove "
            "it."
        )
    blueprint = blueprint_by_name(family, size, chat)
    tokenizer = train_tokenizer(blueprint.tokens, size, corpus, blueprint.processor)
    config = AutoConfig.for_model(**_config(blueprint, tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        initialise(model, size, to_train)
    generation = model.generation_config
    generation.pad_token_id = tokenizer.pad_token_id
    if blueprint.ends:
        ends = [tokenizer.eos_token, *blueprint.ends]
        generation.eos_token_id = tokenizer.convert_tokens_to_ids(ends)
    with replacing_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _save_processor(blueprint, folder)
    return output


def _config(blueprint: Blueprint, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return the options of the model's config, with what depends on the tokenizer."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    own = {name: getattr(tokenizer, name) for name in names}
    text = blueprint.config["text_config"]
    ids = {
        name: tokenizer.convert_tokens_to_ids(token) for name, token in blueprint.token_ids.items()
    }
    size = len(tokenizer)
    whole = blueprint.config | ids | _vocabulary_sizes(blueprint.config, size)
    return whole | {"text_config": text | own | _vocabulary_sizes(text, size)}


def _vocabulary_sizes(options: dict[str, Any], size: int) -> dict[str, int]:
    return {name: size for name in options if name.startswith("vocab_size")}


def _save_processor(blueprint: Blueprint, folder: Path) -> None:
    """Write the processor's files, also of a class that can't be imported without torchvision."""
    image_class = getattr(transformers, f"{blueprint.image_processor}Pil")
    content = {
        "processor_class": blueprint.processor,
        "image_processor": image_class(**blueprint.image_options).to_dict(),
        **blueprint.options,
        **blueprint.other_parts,
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / "processor_config.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(blueprint.template, encoding="utf-8")
