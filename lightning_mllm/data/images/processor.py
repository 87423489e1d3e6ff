"""The checkpoint's processor: tokenizer, chat template and image preprocessing."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers import AutoConfig, PretrainedConfig, ProcessorMixin

from lightning_mllm.checkpoint_files import (
    check_checkpoint_available,
    check_checkpoint_config,
    check_checkpoint_tokens,
    check_features,
    why_checkpoint_fails,
)
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.opening import open_processor
from lightning_mllm.data.images.visual_tokens import align_visual_tokens
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.families import Family, family_of

# of a prefix-LM: images, BOS and the question up to a line break; then the answer
_PREFIX_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{% for part in message.content if part.type == 'image' %}<image>{% endfor %}{{ bos_token }}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{{ '\\n' }}{% else %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)


def load_processor(
    checkpoint: str, revision: str | None = None, trust_remote_code: bool = False
) -> CheckpointProcessor:
    """Load the processor of a multimodal checkpoint.

    Pixels always come from the PIL image backend: the torchvision one rounds differently, and
    results would depend on what happens to be installed.

    Args:
        checkpoint: Hub id or folder of the checkpoint.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Raises:
        CheckpointError: Nothing is there, or it is not a multimodal checkpoint with a fast
            tokenizer, a chat template, an image token, token ids that the model's embedding has,
            and pictures of the size that the model takes.
    """
    options: Any = {"revision": revision, "trust_remote_code": trust_remote_code}
    check_checkpoint_available(checkpoint, revision)
    try:
        config = AutoConfig.from_pretrained(checkpoint, **options)
        family = family_of(config)  # before its processor, which may need packages, is opened
        check_checkpoint_config(config, checkpoint)
        processor = open_processor(checkpoint, config, **options)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises whatever a damaged file provokes
        raise CheckpointError(
            f"No multimodal checkpoint can be read from {checkpoint!r}: "
            f"{why_checkpoint_fails(checkpoint, revision, error)}. Give a hub id such as "
            "llava-hf/llava-1.5-7b-hf, in the right spelling and revision (for a gated model "
            "accept its licence and set HF_TOKEN), or a folder with config.json, tokenizer and "
            "processor files."
        ) from error
    if not family.native:  # LLaVA-1.5's own pads pictures, which Geometry decides
        processor.image_processor.do_pad = False
    _check_parts(processor, family, checkpoint)
    check_checkpoint_tokens(processor, config, checkpoint)
    align_visual_tokens(processor, config, checkpoint)
    _try_a_picture(processor, config, checkpoint)
    return CheckpointProcessor(processor, config)


def limit_length(max_length: int | None, processor: CheckpointProcessor, checkpoint: str) -> int:
    """Return `max_length`, or by default how many tokens the checkpoint can read.

    That is the lesser of what tokenizer and language model say.

    Raises:
        ConfigError: `max_length` is more than the checkpoint can read.
    """
    text_config = processor.config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    limit = int(processor.tokenizer.model_max_length)  # huge where the tokenizer does not know
    if positions:
        limit = min(limit, int(positions))
    if max_length is not None and max_length > limit:
        raise ConfigError(
            f"max_length is {max_length}, but {checkpoint!r} reads {limit} tokens at most."
        )
    return max_length or limit


def _check_parts(processor: ProcessorMixin, family: Family, checkpoint: str) -> None:
    """Refuse a processor that lacks a fast tokenizer, a chat template or a token."""
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The tokenizer of {checkpoint!r} ({type(tokenizer).__name__}) is a slow one; spans "
            "are located by character offsets, which only fast tokenizers give. Convert it: save "
            "it again from AutoTokenizer with the `tokenizers` backend."
        )
    if not getattr(processor, "chat_template", None):
        way_out = (
            "Use a checkpoint in the current Hugging Face format (one with chat_template.jinja), "
            "or write such a file into its folder"
        )
        if family.sees == "prompt whole":  # PaliGemma, whose checkpoints never have one
            way_out = f"Write this into chat_template.jinja in its folder: {_PREFIX_TEMPLATE}"
        raise CheckpointError(
            f"{checkpoint!r} has no chat template, so the model's conversation format is unknown. "
            f"{way_out}."
        )
    if getattr(processor, "image_token", None) is None:
        raise CheckpointError(
            f"The processor of {checkpoint!r} ({type(processor).__name__}) has no image token to "
            "put visual features at. Those of LLaVA (llava-hf/...) and Qwen-VL have one."
        )
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"The tokenizer of {checkpoint!r} has no end-of-sequence token to end an answer with."
        )


def _try_a_picture(processor: ProcessorMixin, config: PretrainedConfig, checkpoint: str) -> None:
    """Refuse a processor that fails on a small picture, or leaves no place for its features."""
    call: Any = processor  # each family's class can be called
    try:
        made = call(
            images=[Image.new("RGB", (8, 8))],
            text=[call.image_token],
            add_special_tokens=False,
            return_tensors="pt",
        )
    except Exception as error:  # transformers raises whatever a wrong option provokes
        raise CheckpointError(
            f"The processor of {checkpoint!r} can't process a picture: "
            f"{why_checkpoint_fails(checkpoint, None, error)}. Correct its "
            "processor_config.json or preprocessor_config.json."
        ) from error
    check_features(made["input_ids"][0].tolist(), processor, config, checkpoint)
