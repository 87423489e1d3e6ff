"""What is measured at each visual token of one sample, from one pass and one per hidden block.

The words and the answer's log-probability are the logit lens: a state of the residual stream
through the final norm and the head. The attention is that of LAST, as a mean of the heads. The
effect of a block of patches is that of hiding it from all other tokens in all layers, by the mask
that hides padding: positions stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.attention import QueryRows, observe_attention
from lightning_mllm.analysis.forward.float32_head import (
    head_states_at_once,
    next_token_head_logits,
)
from lightning_mllm.analysis.forward.prompts import Prompts, prompt_log_probabilities
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_before_layers
from lightning_mllm.models.layers import layers_and_norm
from lightning_mllm.types import Segment

TOP = 3  # words of a patch
BLOCKS = 4  # along each side of a picture
_AT_ONCE = 16  # prompts with something hidden that run together


@dataclass(frozen=True, eq=False)
class SeenPrompt:
    """What one pass over a prompt shows at its visual tokens.

    Attributes:
        states: (layers + 1, tokens, width): index l is what enters layer l, the last what enters
            the final norm.
        attention: (layers, tokens), weights of LAST, mean of the heads; None if not asked for.
        logprobs: (vocabulary,), of the token after the prompt.
        answer: Id of the likeliest one.
    """

    states: Tensor
    attention: Tensor | None
    logprobs: Tensor
    answer: int


def see_prompt(backbone: Backbone, prompt: Prompts, *, attention: bool) -> SeenPrompt:
    """Run one prompt, and keep what its visual tokens show.

    Args:
        backbone: The model.
        prompt: One, not padded.
        attention: Whether attention weights are looked at.
    """
    image, last = (prompt.batch.spans[each] for each in (Segment.IMAGE, Segment.LAST))
    states: list[Tensor] = []
    weights: list[Tensor] = []
    device = backbone.model.device

    def keep(_: int, hidden: Tensor, __: object) -> None:
        states.append(hidden[image.to(hidden.device)].to(device))

    def look(_: int, seen: Tensor) -> None:
        of_last = seen[0, :, 0].mean(0)  # (keys,)
        weights.append(of_last[image[0].to(of_last.device)].to(device))

    looking = observe_attention(backbone, QueryRows.of(last), look) if attention else nullcontext()
    with hook_before_layers(dict(enumerate(layers_and_norm(backbone))), keep), looking:
        logits, _ = prompt.forward(backbone)
    logprobs = prompt_log_probabilities(logits)[0]
    return SeenPrompt(
        torch.stack(states),
        torch.stack(weights) if attention else None,
        logprobs,
        int(logprobs.argmax()),
    )


def read_words(backbone: Backbone, states: Tensor, answer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Read what each state says by the logit lens.

    Args:
        backbone: The model.
        states: (layers, tokens, width), in front of the final norm.
        answer: Id of a token.

    Returns:
        (layers, tokens, TOP) ids of the likeliest words and their log-probabilities, and
        (layers, tokens) log-probabilities of the answer's token.
    """
    ids, logprobs, answers = [], [], []
    for some in states.flatten(0, 1).split(head_states_at_once(backbone.lm_head)):
        found = prompt_log_probabilities(next_token_head_logits(backbone, some))
        best = found.topk(TOP)
        ids.append(best.indices)
        logprobs.append(best.values)
        answers.append(found[:, answer])
    shape = states.shape[:2]
    return (
        torch.cat(ids).unflatten(0, shape),
        torch.cat(logprobs).unflatten(0, shape),
        torch.cat(answers).unflatten(0, shape),
    )


def divide_tokens(tokens: int) -> Tensor:
    """Return which block each visual token is in, (tokens,).

    Where they may form a square they do, and blocks are squares of it; otherwise blocks are runs of
    tokens.
    """
    side = isqrt(tokens)
    if side * side == tokens:
        blocks = min(BLOCKS, side)
        along = torch.arange(side) * blocks // side
        return (along[:, None] * blocks + along).flatten()
    blocks = min(BLOCKS**2, tokens)
    return torch.arange(tokens) * blocks // tokens


def hide_blocks(backbone: Backbone, prompt: Prompts, seen: SeenPrompt) -> Tensor:
    """Return how much log-probability the answer's first token loses when its block is hidden.

    Args:
        backbone: The model.
        prompt: One, not padded.
        seen: What a pass with nothing hidden has shown.

    Returns:
        (tokens,), each token with the number of its block; above 0 where the block is needed.
    """
    image = prompt.batch.spans[Segment.IMAGE][0]
    blocks = divide_tokens(int(image.sum())).to(image.device)
    count = int(blocks.max()) + 1
    lost: list[Tensor] = []
    for numbers in torch.arange(count, device=image.device).split(_AT_ONCE):
        mask = prompt.batch.attention_mask.repeat(len(numbers), 1)
        hidden = (blocks == numbers[:, None]).to(mask.dtype)  # (numbers, tokens)
        mask[:, image] *= 1 - hidden
        lost.append(seen.logprobs[seen.answer] - _run_masked(backbone, prompt, mask, seen.answer))
    return torch.cat(lost)[blocks]


def _run_masked(backbone: Backbone, prompt: Prompts, mask: Tensor, answer: int) -> Tensor:
    """Return the answer's log-probability under each mask, (masks,)."""
    batch = replace(prompt.batch.take([0] * len(mask)), attention_mask=mask)
    images: Sequence[object] = [*prompt.images] * len(mask)
    logits, _ = Prompts(batch, images).forward(backbone)  # type: ignore[arg-type]  # as above
    return prompt_log_probabilities(logits)[:, answer]
