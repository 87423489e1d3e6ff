"""The residual stream at some positions of a batch, through the head: for some tokens, and for the likeliest.

Nothing of vocabulary size is kept: states go through the head some at a time, and what stays is the logits of the
tokens asked for, their ranks, the normaliser and the likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.float32_head import head_logits
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.hooks import before_layers
from lightning_mllm.models.layers import run_uncompiled
from lightning_mllm.types import AnswerForms, MultimodalBatch, Segment

Norm = Literal["final", "none"]
Vocabulary = Literal["head", "tokenizer"]

WORDS = ("lower", "capitalised", "false_lower", "false_capitalised")  # of the answer, and of the wrong option
_LOGITS = 1 << 24  # that exist at once


@dataclass(frozen=True)
class Seen:
    """What the lens sees of n states.

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
class Places:
    """Where a batch is read, and for which tokens: n positions, LAST and those of the reference but its last token.

    Attributes:
        read: (batch, sequence) bool, the n positions.
        at_last: (n,) bool.
        owner: (n,) the sample that a position is of.
        ids: (n, words + 1): at LAST the words, everywhere the reference's next token; -1 for none.
        lengths: (batch,) numbers of tokens of the references.
    """

    read: Tensor
    at_last: Tensor
    owner: Tensor
    ids: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, batch: MultimodalBatch) -> Places:
        """Find them."""
        last = batch.spans[Segment.LAST]
        reference = (last.int().cumsum(1) - last.int()).bool() & batch.attention_mask.bool()
        reference &= batch.input_ids != batch.end_id
        is_next, following = torch.zeros_like(reference), torch.full_like(batch.input_ids, -1)
        is_next[:, :-1], following[:, :-1] = reference[:, 1:], batch.input_ids[:, 1:]
        read = last | is_next
        at_last = last[read]
        ids = torch.full((len(at_last), len(WORDS) + 1), -1, device=read.device)
        ids[at_last, : len(WORDS)] = _word_ids(batch.answers).to(read.device)
        ids[:, -1] = following.where(is_next, -1)[read]
        return cls(read, at_last, read.nonzero()[:, 0], ids, reference.sum(1))

    def joint(self, logprobs: Tensor) -> Tensor:
        """Return the joint log-probability of each reference, (batch,), of those of its tokens, (n,)."""
        total = torch.zeros(len(self.lengths), dtype=torch.float64)
        total.index_add_(0, self.owner.cpu(), logprobs.double().cpu().nan_to_num(0.0))
        return total.where(self.lengths.cpu() > 0, nan)


def residual_states(backbone: Backbone, batch: MultimodalBatch, read: Tensor, norm: Norm) -> list[Tensor]:
    """Return what goes through the head, for each index from 0 to L: (n, width).

    Args:
        backbone: The model.
        batch: What it reads.
        read: (batch, sequence) bool, the n positions.
        norm: Whether index 0 to L - 1 are normed; index L always is.
    """
    decoder, states = backbone.decoder, {}

    def keep(index: int, hidden: Tensor, _: Any) -> None:
        states[index] = hidden[read]

    with before_layers(dict(enumerate(decoder.layers)), keep):  # type: ignore[arg-type]  # a ModuleList
        output = run_uncompiled(backbone, batch)
    check_finite(output.last_hidden_state.where(read[..., None], 0), batch.sample_ids, "The LLM's states")
    raw = [states[index] for index in sorted(states)]
    through = [decoder.norm(each) for each in raw] if norm == "final" else raw  # type: ignore[operator]  # a module
    return [*through, output.last_hidden_state[read]]


def look(head: nn.Module, states: Tensor, ids: Tensor, top: int, vocabulary: int | None = None) -> Seen:
    """Send states through the head, some at a time.

    Args:
        head: The output embedding, width -> vocabulary.
        states: (n, width).
        ids: (n, k) tokens to look for, -1 for none: NaN comes of it.
        top: How many of the likeliest tokens to return.
        vocabulary: How many of the head's first tokens there are, where the rest is padding; by default all.
    """
    size: int = head.weight.shape[0]  # type: ignore[assignment,index]  # of a Linear
    parts = []
    for some, own in zip(*(each.split(max(1, _LOGITS // size)) for each in (states, ids)), strict=True):
        logits = head_logits(head, some)[:, :vocabulary]  # (some, vocabulary)
        normaliser = logits.logsumexp(1, keepdim=True)
        picked = logits.gather(1, own.clamp(min=0))
        ranks = torch.stack([(logits > column[:, None]).sum(1) for column in picked.T], dim=1).to(logits.dtype)
        best = logits.topk(min(top, logits.shape[1]))
        none = own < 0
        parts.append(
            (
                (picked - normaliser).masked_fill(none, nan),
                ranks.masked_fill(none, nan),
                best.indices,
                best.values - normaliser,
            )
        )
    return Seen(*map(torch.cat, zip(*parts, strict=True)))


def _word_ids(answers: Sequence[AnswerForms | None]) -> Tensor:
    """Return the first tokens of the words, (batch, words), -1 for none."""
    rows = []
    for forms in answers:
        true, false = (forms.true, forms.false) if forms is not None else (None, None)
        words = [form for each in (true, false) for form in ((each.lower, each.capitalised) if each else ((), ()))]
        rows.append([word[0] if word else -1 for word in words])
    return torch.tensor(rows)
