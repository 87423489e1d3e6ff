"""Generates the answers to prompts; nothing else in the package generates.

Of a checkpoint's generation config only the tokens that end an answer are used. The rest says how
its makers like to chat, and scores that depend on it could not be compared between checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import CheckpointError
from lightning_mllm.evaluation.finite import check_finite

_USED = "eos_token_id"
# a batch has ids of its own
_WITHOUT_EFFECT = ("bos_token_id", "pad_token_id", "transformers_version", "_from_model_config")


@torch.no_grad()
def decode_prompts(
    model: PreTrainedModel, prompts: MultimodalBatch, max_new_tokens: int, temperature: float = 0.0
) -> Tensor:
    """Return the tokens after each prompt, (batch, new); after an answer's end they are padding.

    Args:
        model: The MLLM.
        prompts: From `MultimodalBatch.prompts`.
        max_new_tokens: Length at which an answer is cut.
        temperature: 0 for greedy decoding; above 0, answers are sampled from the whole softmax at
            this temperature.

    Raises:
        NotFiniteError: A logit is NaN or infinite.
    """
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        num_beams=1,
        pad_token_id=prompts.pad_id,
        eos_token_id=decoding_end_ids(model, prompts),
        **(sampling if temperature > 0 else {}),
    )
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # a mixin's
    with _use_config(model, config):
        tokens = generate(  # (batch, prompt + new)
            **_cast(prompts.model_inputs(), model.get_input_embeddings()),
            generation_config=config,
            logits_processor=LogitsProcessorList([_FiniteLogits(prompts.sample_ids)]),
        )
    return tokens[:, prompts.input_ids.shape[1] :]


def _cast(inputs: dict[str, Tensor], embeddings: Any) -> dict[str, Tensor]:
    """Give pixels the LLM's dtype: `generate` encodes pictures before a forward could cast them."""
    dtype = embeddings.weight.dtype
    cast = {}
    for name, value in inputs.items():
        cast[name] = value.to(dtype) if value.is_floating_point() else value
    return cast


class _FiniteLogits(LogitsProcessor):
    """Refuses logits that are not finite, from which no likeliest token follows."""

    def __init__(self, sample_ids: Sequence[str]) -> None:
        self.sample_ids = sample_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Check the largest logit of each row, which is NaN if any logit is."""
        check_finite(scores.amax(dim=1), self.sample_ids, "The model's logits")
        return scores


def decoding_end_ids(model: PreTrainedModel, prompts: MultimodalBatch) -> list[int]:
    """Return the ids that end an answer: the checkpoint's, and that of the batch's own answers."""
    return sorted({*_ends(model.generation_config), prompts.end_id})


def describe_decoding(config: GenerationConfig) -> str | None:
    """Return a sentence on what of a generation config is not used; None if everything is.

    Args:
        config: The checkpoint's generation config.
    """
    usual = {**GenerationConfig().to_dict(), **GenerationConfig._get_default_generation_params()}
    unused = []
    for key, value in config.to_dict().items():
        if key == _USED or key in _WITHOUT_EFFECT or value in (None, False, usual.get(key)):
            continue
        unused.append(f"{key}={value!r}")
    if not unused:
        return None
    return (
        f"Of the checkpoint's generation config only {_USED}={_ends(config)} is used, beside the "
        "token that ends the prompt's own answers. Not used, since answers are greedy or sampled "
        f"as the scorer says: {', '.join(unused)}."
    )


def check_decoding_ends(config: GenerationConfig, vocabulary: int, checkpoint: str) -> None:
    """Check the ids of the tokens that end an answer.

    Raises:
        CheckpointError: One of them is not an id of the model's vocabulary.
    """
    for token in _ends(config):
        if type(token) is not int or not 0 <= token < vocabulary:
            raise CheckpointError(
                f"The generation config of checkpoint {checkpoint!r} has {_USED} "
                f"{config.eos_token_id!r}, but {token!r} is not an id of the model's {vocabulary} "
                "tokens. Correct it in generation_config.json."
            )


def _ends(config: GenerationConfig) -> list[Any]:
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]


@contextmanager
def _use_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Give a model this generation config: `generate` takes missing values from the model's own."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own
