"""Decodes the answers to prompts, token by token; nothing else in the package generates.

Of a checkpoint's generation config only the tokens that end an answer are used. The rest says how
its makers like to chat, and scores that depend on it could not be compared between checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import CheckpointError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.evaluation.prompt_pass import PromptPass

_USED = "eos_token_id"
# a batch has ids of its own
_WITHOUT_EFFECT = ("bos_token_id", "pad_token_id", "transformers_version", "_from_model_config")


@torch.no_grad()
def decode_answers(asked: PromptPass, max_new_tokens: int, temperature: float = 0.0) -> Tensor:
    """Return the tokens after each prompt, (batch, new); after an answer's end they are padding.

    Args:
        asked: The prompts; afterwards it is as before.
        max_new_tokens: Length at which an answer is cut.
        temperature: 0 for greedy decoding; above 0, answers are sampled from the whole softmax at
            this temperature.

    Raises:
        NotFiniteError: A logit is NaN or infinite.
    """
    asked = asked.with_room(max_new_tokens)
    ids, seen = asked.inputs.input_ids, asked.seen
    ends = torch.tensor(decoding_end_ids(asked.model, asked.batch), device=ids.device)
    running = torch.ones_like(ids[:, 0], dtype=torch.bool)
    new, hidden = ids[:, :0], asked.last
    try:
        while True:
            token = _choose_tokens(asked, hidden[:, 0], temperature).to(ids.device)
            token = token.where(running, asked.batch.pad_id)
            new = torch.cat([new, token[:, None]], dim=1)
            running &= ~torch.isin(token, ends)
            if new.shape[1] >= max_new_tokens or not running.any():
                return new
            mask = torch.cat([seen, torch.ones_like(new)], dim=1)
            hidden = asked.extend(token[:, None], new.shape[1] - 1, mask)
    finally:
        asked.restore()


def _choose_tokens(asked: PromptPass, hidden: Tensor, temperature: float) -> Tensor:
    """Return the next token of each sample, (batch,), after its last state, (batch, width)."""
    logits = asked.logits(hidden).float()
    # the largest of a row is NaN if any is
    check_finite(logits.amax(dim=1), asked.batch.sample_ids, "The model's logits")
    if temperature > 0:
        return torch.multinomial((logits / temperature).softmax(dim=1), 1)[:, 0]
    return logits.argmax(dim=1)


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
