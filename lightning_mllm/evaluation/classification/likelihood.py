"""Classification by likelihood: the probability of every class name as the whole answer.

The score of class c is the log-probability of its tokens, end-of-turn token included, after the
prompt: `log p(c | prompt) = sum_t log p(c_t | prompt, c_<t)`.

All classes share one pass over the prompt, image included, whose keys and values stay unchanged.
The labels follow it in one row, and a block-diagonal causal mask lets each token attend to the
prompt and to its own label only:

```
          prompt   r e d   g r e e n
 red    | ■ ■ ■ ■  ■ ■ ■   . . . . .    position_ids restart at the prompt's length for each label
 green  | ■ ■ ■ ■  . . .   ■ ■ ■ ■ ■
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.scorer import Predictions, Scorer
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.types import LabelSet

_HEAD_ROWS = 256
# our mask is additive, since a bool mask would be wrong under eager
_DENSE_MASK_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Likelihood(Scorer):
    """Computes the log-likelihood of every label after one shared pass over the prompt.

    Attributes:
        tokens_per_pass: Largest number of label tokens per sample that go through the model at
            once; labels stay whole. Lower it if memory runs out with hundreds of classes; the
            scores do not depend on it.
    """

    name: ClassVar[str] = "likelihood"
    tokens_per_pass: int = 1024

    @torch.no_grad()
    def classify(
        self, asked: PromptPass, tokenizer: PreTrainedTokenizerBase, labels: LabelSet
    ) -> Predictions:
        """Score every label for every sample; the answer is the name of the most likely class.

        Raises:
            ConfigError: The attention implementation does not take a dense mask, or a layer does
                not keep the keys of all positions.
            NotFiniteError: A log-probability is NaN or infinite.
        """
        _check_attention(asked.model)
        count = sum(map(len, labels.token_ids))
        rows = max(min(count, self.tokens_per_pass), *map(len, labels.token_ids))
        asked = asked.with_room(rows)
        _check_cache(asked.cache, asked.inputs.input_ids.shape[1] + rows)

        last, first_tokens = asked.last, [tokens[0] for tokens in labels.token_ids]
        first_ids = torch.tensor([first_tokens], device=last.device)
        scores = _log_probabilities(asked, last, first_ids)[:, 0]  # (batch, classes)
        chunks = _cut_labels(labels.token_ids, self.tokens_per_pass)
        scores = scores + torch.cat([_score_labels(asked, chunk) for chunk in chunks], dim=1)

        check_finite(scores, asked.batch.sample_ids, "The model's log-probabilities of the classes")
        predicted = scores.argmax(dim=1)
        answers = tuple(labels.names[index] for index in predicted.tolist())
        return Predictions(answers, predicted, scores)


def _score_labels(asked: PromptPass, labels: Sequence[tuple[int, ...]]) -> Tensor:
    """Return (batch, labels): log p(tokens 1, 2, ... of a label | prompt, token 0)."""
    lengths = [len(tokens) - 1 for tokens in labels]
    device = asked.inputs.input_ids.device
    if not any(lengths):
        return torch.zeros(len(asked.batch), len(labels), device=device)
    given = chain.from_iterable(tokens[:-1] for tokens in labels)
    expected = chain.from_iterable(tokens[1:] for tokens in labels)
    inputs = torch.tensor([*given], device=device)  # (row,)
    targets = torch.tensor([*expected], device=device)
    repeats = torch.tensor(lengths, device=device)
    label = torch.arange(len(labels), device=device).repeat_interleave(repeats)
    offset = torch.cat([torch.arange(length, device=device) for length in lengths])
    hidden = asked.extend(inputs.expand(len(asked.batch), -1), offset, _mask_labels(asked, label))
    asked.restore()
    per_token = _log_probabilities(asked, hidden, targets[:, None])
    per_label = torch.split(per_token[..., 0], lengths, dim=1)  # of (batch, row)
    return torch.stack([part.sum(dim=1) for part in per_label], dim=1)


def _mask_labels(asked: PromptPass, label: Tensor) -> Tensor:
    """Return the additive mask, (batch, 1, row, sequence + row).

    A token attends to the prompt's real tokens, and to its own label up to itself.

    Args:
        asked: The prompts.
        label: (row,), which label each token is of.
    """
    row, (batch, sequence) = len(label), asked.seen.shape
    of_prompt = asked.seen.bool()[:, None].expand(batch, row, sequence)
    same_label = (label[:, None] == label).tril()  # (row, row)
    seen = torch.cat([of_prompt, same_label.expand(batch, row, row)], dim=2)
    keys: Tensor = asked.cache.layers[0].keys  # type: ignore[union-attr,assignment]
    # in the queries' dtype, under autocast too
    mask = torch.zeros(seen.shape, dtype=keys.dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[:, None]


def _log_probabilities(asked: PromptPass, hidden: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities of next tokens, (batch, row, k), in float32 or better.

    At most (_HEAD_ROWS, vocabulary) logits exist at a time.

    Args:
        asked: The pass, for the model's head.
        hidden: (batch, row, width), last hidden states.
        ids: (row, k), the next tokens.
    """
    batch, row, _ = hidden.shape
    blocks = zip(
        hidden.flatten(0, 1).split(_HEAD_ROWS),
        ids.expand(batch, -1, -1).flatten(0, 1).split(_HEAD_ROWS),
        strict=True,
    )
    parts = []
    for states, wanted in blocks:
        logits = asked.logits(states)  # (rows, vocabulary)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts.append(logits.gather(1, wanted) - logits.logsumexp(dim=1, keepdim=True))
    return torch.cat(parts).view(batch, row, -1)


def _cut_labels(
    labels: Sequence[tuple[int, ...]], limit: int
) -> Iterator[Sequence[tuple[int, ...]]]:
    """Cut the labels, in order, into runs of at most `limit` tokens; a longer label is one run."""
    start = used = 0
    for index, tokens in enumerate(labels):
        if index > start and used + len(tokens) > limit:
            yield labels[start:index]
            start, used = index, 0
        used += len(tokens)
    yield labels[start:]


def _check_attention(model: PreTrainedModel) -> None:
    implementation = model.get_decoder().config._attn_implementation
    if implementation not in _DENSE_MASK_ATTENTION:
        raise ConfigError(
            "Label likelihood hides the labels from each other with a dense attention mask, which "
            f"{implementation!r} ignores or rejects. Load the model with attention=sdpa, or use "
            "the generation scorer only."
        )


def _check_cache(cache: Cache, length: int) -> None:
    """Refuse a cache that would not keep the keys of `length` positions in every layer."""
    for layer in cache.layers:
        if not hasattr(layer, "keys"):
            raise ConfigError(
                "Label likelihood hides the labels from each other with a mask over keys, but "
                "layers of this model have no keys: linear attention mixes all earlier tokens. Use "
                "the generation scorer."
            )
        window = getattr(layer, "sliding_window", None)
        if window is not None and window <= length:
            raise ConfigError(
                "Label likelihood needs keys and values of the whole prompt and of the labels, "
                f"{length} positions, but this model keeps only those of a sliding window of "
                f"{window}. Use the generation scorer."
            )
