"""The residual stream at some positions of a batch, through the head: what it says at each layer.

Nothing of the vocabulary's size is kept. States go through the head some at a time. What stays is
the logits of the tokens asked for, their ranks, the normaliser and the likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.float32_head import head_logits, head_states_at_once
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import hook_before_layers
from lightning_mllm.models.layers import decoder_layers, run_layers_uncompiled
from lightning_mllm.types import AnswerForms, Segment

Norm = Literal["final", "none"]
TokensOf = Literal["head", "tokenizer"]

# of the answer, and of the wrong option
WORDS = ("lower", "capitalised", "false_lower", "false_capitalised")


@dataclass(frozen=True)
class Readout:
    """What the lens sees in n states.

    Attributes:
        logprobs: (n, k) log-probabilities of the ids asked for.
        ranks: (n, k) numbers of tokens that are likelier.
        top: (n, top) the likeliest tokens.
        top_logprobs: (n, top) their log-probabilities.
    """

    logprobs: Tensor
    ranks: Tensor
    top: Tensor
    top_logprobs: Tensor


@dataclass(frozen=True)
class ReadoutPositions:
    """Where the lens is put: n positions, LAST and those of the reference without its last token.

    Attributes:
        seen: (batch, sequence) bool, the n positions.
        at_last: (n,) bool, whether a position is LAST.
        owner: (n,) the sample to which a position belongs.
        ids: (n, words + 1): at LAST the words, everywhere the reference's next token; -1 for none.
        lengths: (batch,) numbers of tokens of the references.
    """

    seen: Tensor
    at_last: Tensor
    owner: Tensor
    ids: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, batch: MultimodalBatch) -> ReadoutPositions:
        """Find them."""
        last = batch.spans[Segment.LAST]
        after_last = (last.int().cumsum(1) - last.int()).bool()
        reference = after_last & batch.attention_mask.bool() & (batch.input_ids != batch.end_id)
        is_next, following = torch.zeros_like(reference), torch.full_like(batch.input_ids, -1)
        is_next[:, :-1], following[:, :-1] = reference[:, 1:], batch.input_ids[:, 1:]
        seen = last | is_next
        at_last = last[seen]
        ids = torch.full((len(at_last), len(WORDS) + 1), -1, device=seen.device)
        ids[at_last, : len(WORDS)] = _word_ids(batch.answers).to(seen.device)
        ids[:, -1] = following.where(is_next, -1)[seen]
        return cls(seen, at_last, seen.nonzero()[:, 0], ids, reference.sum(1))

    def joint(self, logprobs: Tensor) -> Tensor:
        """Return the joint log-probability of each reference, (batch,).

        Args:
            logprobs: (n,), of the reference's next token at each position.
        """
        total = torch.zeros(len(self.lengths), dtype=torch.float64)
        total.index_add_(0, self.owner.cpu(), logprobs.double().cpu().nan_to_num(0.0))
        return total.where(self.lengths.cpu() > 0, nan)


def readout_states(
    backbone: Backbone, batch: MultimodalBatch, seen: Tensor, norm: Norm
) -> list[Tensor]:
    """Return what goes through the head, for each index from 0 to L: (n, width).

    Args:
        backbone: The model.
        batch: What it is run on.
        seen: (batch, sequence) bool, the n positions.
        norm: Whether index 0 to L - 1 are normed; index L always is.
    """
    final_norm = backbone.final_norm
    states: list[Tensor] = []

    def keep(_: int, hidden: Tensor, __: Any) -> None:
        states.append(hidden[seen])

    with hook_before_layers(dict(enumerate(decoder_layers(backbone))), keep):
        last = run_layers_uncompiled(backbone, batch).last_hidden_state
    check_finite(last.where(seen[..., None], 0), batch.sample_ids, "The LLM's states")
    if norm == "final":
        states = [final_norm(each) for each in states]
    return [*states, last[seen]]


def read_out(
    head: nn.Module,
    states: Tensor,
    ids: Tensor,
    top: int,
    *,
    vocabulary: int | None = None,
    finish: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> Readout:
    """Send states through the head, some at a time.

    Args:
        head: The output embedding, width -> vocabulary.
        states: (n, width).
        ids: (n, k) tokens to look for, -1 for none: NaN comes of it.
        top: How many of the likeliest tokens to return.
        vocabulary: How many of the head's first tokens there are, where the rest is padding; by
            default all.
        finish: What the model does to the logits of its head, such as a soft cap.
    """
    size = head_states_at_once(head)
    logprobs, ranks, best, best_logprobs = [], [], [], []
    for some, own in zip(states.split(size), ids.split(size), strict=True):
        logits = finish(head_logits(head, some))[:, :vocabulary]  # (some, vocabulary)
        normaliser = logits.logsumexp(1, keepdim=True)
        picked, none = logits.gather(1, own.clamp(min=0)), own < 0
        likelier = [(logits > column[:, None]).sum(1) for column in picked.T]
        found = logits.topk(min(top, logits.shape[1]))
        logprobs.append((picked - normaliser).masked_fill(none, nan))
        ranks.append(torch.stack(likelier, dim=1).to(logits.dtype).masked_fill(none, nan))
        best.append(found.indices)
        best_logprobs.append(found.values - normaliser)
    return Readout(*map(torch.cat, (logprobs, ranks, best, best_logprobs)))


def _word_ids(answers: Sequence[AnswerForms | None]) -> Tensor:
    """Return the first tokens of the words, (batch, words), -1 for none."""
    rows = []
    for forms in answers:
        row = []
        for each in (forms.true, forms.false) if forms is not None else (None, None):
            for word in (each.lower, each.capitalised) if each is not None else ((), ()):
                row.append(word[0] if word else -1)
        rows.append(row)
    return torch.tensor(rows)
