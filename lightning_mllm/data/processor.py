"""The checkpoint's processor: tokenizer, chat template and image preprocessing, with an explicit image backend."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedConfig, ProcessorMixin

from lightning_mllm.data.visual_tokens import align_with_model
from lightning_mllm.errors import CheckpointError


def load_processor(checkpoint: str, revision: str | None = None, trust_remote_code: bool = False) -> ProcessorMixin:
    """Load the processor of a multimodal checkpoint.

    Pixels always come from the PIL image backend: the torchvision one rounds differently, and results would depend on
    what happens to be installed.

    Args:
        checkpoint: Hub id or folder.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Raises:
        CheckpointError: Nothing is there, or it is not a multimodal checkpoint with a fast tokenizer, a chat template,
            an image token, token ids that the model's embedding has, and pictures of the size that the model takes.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(checkpoint, **options)
        if not hasattr(config, "vision_config"):
            raise CheckpointError(
                f"{checkpoint!r} is a text-only checkpoint (model type {config.model_type!r}). "
                "Choose a multimodal one, e.g. llava-hf/llava-1.5-7b-hf."
            )
        processor = AutoProcessor.from_pretrained(checkpoint, **options)
        # The backend goes to the image processor alone: AutoProcessor would hand it to the tokenizer too.
        image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", **options)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(_unreadable(checkpoint, error)) from error
    if not isinstance(processor, ProcessorMixin) or getattr(processor, "image_processor", None) is None:
        raise CheckpointError(
            f"{checkpoint!r} has no image processor (found a {type(processor).__name__}), so it is no multimodal "
            "checkpoint. Choose one that is, e.g. llava-hf/llava-1.5-7b-hf."
        )
    processor.image_processor = image_processor
    _check(processor, checkpoint)
    _check_vocabulary(processor, config, checkpoint)
    align_with_model(processor, config, checkpoint)
    return processor


def context_length(
    processor: ProcessorMixin, checkpoint: str, revision: str | None = None, trust_remote_code: bool = False
) -> int:
    """Return how many tokens the checkpoint can read: the lesser of what tokenizer and language model say."""
    config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = int(processor.tokenizer.model_max_length)  # a huge number where the tokenizer does not know
    return min(limit, int(positions)) if positions else limit


def _check(processor: ProcessorMixin, checkpoint: str) -> None:
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The tokenizer of {checkpoint!r} ({type(tokenizer).__name__}) is a slow one; spans are located by "
            "character offsets, which only fast tokenizers give. Convert it: save it again from AutoTokenizer with "
            "the `tokenizers` backend."
        )
    if not getattr(processor, "chat_template", None):
        raise CheckpointError(
            f"{checkpoint!r} has no chat template, so the model's conversation format is unknown. Use a checkpoint in "
            "the current Hugging Face format (one with chat_template.jinja), or set `chat_template` in its processor."
        )
    if getattr(processor, "image_token", None) is None:
        raise CheckpointError(
            f"The processor of {checkpoint!r} ({type(processor).__name__}) has no image token to put visual features "
            "at. LLaVA-1.5 and LLaVA-NeXT checkpoints (llava-hf/...) have one."
        )
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"The tokenizer of {checkpoint!r} has no end-of-sequence token to end an answer with.")


def _check_vocabulary(processor: Any, config: PreTrainedConfig, checkpoint: str) -> None:
    """Refuse token ids that the embedding has no row for: the first text with such a token would end the run."""
    rows = config.get_text_config().vocab_size
    beyond = {number: token for token, number in processor.tokenizer.get_vocab().items() if number >= rows}
    if beyond:
        raise CheckpointError(
            f"The tokenizer of {checkpoint!r} has {len(beyond)} tokens, e.g. {beyond[max(beyond)]!r} with id "
            f"{max(beyond)}, for which the model's embedding of {rows} rows has none. Use the tokenizer that the model "
            "was trained with, or enlarge the embedding (`resize_token_embeddings`) and save it again."
        )


def _unreadable(checkpoint: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return (
        f"No multimodal checkpoint can be read from {checkpoint!r}: {reason}. "
        "Give a hub id such as llava-hf/llava-1.5-7b-hf, or a folder with config.json, tokenizer and processor files."
    )
