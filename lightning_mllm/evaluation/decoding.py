"""What a model says behind its prompts: the only place that generates.

A checkpoint's generation config decides nothing here but which tokens end an answer: it says how its makers like to
chat, and scores by it could not be compared with those of another checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lightning_mllm.errors import CheckpointError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.types import MultimodalBatch

_TAKEN_OVER = "eos_token_id"
_WITHOUT_EFFECT = ("bos_token_id", "pad_token_id", "transformers_version", "_from_model_config")  # a batch has its own


@torch.no_grad()
def continue_prompts(
    model: PreTrainedModel, prompts: MultimodalBatch, max_new_tokens: int, temperature: float = 0.0
) -> Tensor:
    """Return the tokens behind each prompt, (batch, new); behind an answer's end they are padding.

    Args:
        model: The MLLM.
        prompts: From `MultimodalBatch.prompts`.
        max_new_tokens: Length at which an answer is cut.
        temperature: 0 for greedy decoding; above, answers are sampled from the whole softmax at this temperature.

    Raises:
        NotFiniteError: The model gives no numbers.
    """
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        num_beams=1,
        pad_token_id=prompts.pad_id,
        eos_token_id=end_ids(model, prompts),
        **(sampling if temperature > 0 else {}),
    )
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # a mixin's
    with _instead_of_its_own(model, config):
        tokens = generate(  # (batch, prompt + new)
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            **prompts.vision,
            generation_config=config,
            logits_processor=LogitsProcessorList([_FiniteLogits(prompts.sample_ids)]),
        )
    return tokens[:, prompts.input_ids.shape[1] :]


class _FiniteLogits(LogitsProcessor):
    """Refuses logits of which the likeliest token is none."""

    def __init__(self, sample_ids: Sequence[str]) -> None:
        self.sample_ids = sample_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at the largest logit of each row, which is NaN if one of them is."""
        check_finite(scores.amax(dim=1), self.sample_ids, "The model's logits")
        return scores


def end_ids(model: PreTrainedModel, prompts: MultimodalBatch) -> list[int]:
    """Return the tokens that end an answer: those of the checkpoint, and the one that ends the batch's own answers."""
    return sorted({*_ends(model.generation_config), prompts.end_id})


def describe_decoding(config: GenerationConfig) -> str | None:
    """Return a sentence on what a checkpoint's generation config says and on what of it is used; None if on no more.

    Args:
        config: The checkpoint's.
    """
    usual = {**GenerationConfig().to_dict(), **GenerationConfig._get_default_generation_params()}
    said = {key: value for key, value in config.to_dict().items() if key not in (_TAKEN_OVER, *_WITHOUT_EFFECT)}
    unused = [f"{key}={value!r}" for key, value in said.items() if value not in (None, False, usual.get(key))]
    if not unused:
        return None
    return (
        f"Of the checkpoint's generation config only {_TAKEN_OVER}={_ends(config)} is taken over, beside the token "
        f"that ends the prompt's own answers; not used, as answers are greedy or sampled as the scorer says: "
        f"{', '.join(unused)}."
    )


def check_ends(config: GenerationConfig, vocabulary: int, checkpoint: str) -> None:
    """Refuse a checkpoint's end tokens that are none.

    Raises:
        CheckpointError: One is no id of the model's vocabulary.
    """
    for token in _ends(config):
        if type(token) is not int or not 0 <= token < vocabulary:
            raise CheckpointError(
                f"The generation config of checkpoint {checkpoint!r} has {_TAKEN_OVER} {config.eos_token_id!r}, but "
                f"{token!r} is no id of the model's {vocabulary} tokens. Correct it in generation_config.json."
            )


def _ends(config: GenerationConfig) -> list[Any]:
    ends = config.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]


@contextmanager
def _instead_of_its_own(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Let a model have this generation config: `generate` fills up what is not said from the model's."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own
