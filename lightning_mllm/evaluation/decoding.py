"""What a model says behind its prompts: the only place that generates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.types import MultimodalBatch


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
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]  # a mixin's
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
    tokens = generate(  # (batch, prompt + new)
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask,
        **prompts.vision,
        # all that the checkpoint's generation config could say otherwise is said here
        max_new_tokens=max_new_tokens,
        min_length=0,
        do_sample=temperature > 0,
        **(sampling if temperature > 0 else {}),
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=prompts.pad_id,
        eos_token_id=end_ids(model, prompts),
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
    ends = model.generation_config.eos_token_id
    return sorted({*([ends] if isinstance(ends, int) else ends or ()), prompts.end_id})
