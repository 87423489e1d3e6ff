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
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.classification.scorer import Predictions, Scorer
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.families import finish_logits
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
    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: MultimodalBatch,
        labels: LabelSet,
    ) -> Predictions:
        """Score every label for every sample; the answer is the name of the most likely class.

        Raises:
            ConfigError: The attention implementation does not take a dense mask, or a layer does
                not keep the keys of all positions.
            NotFiniteError: A log-probability is NaN or infinite.
        """
        _check_attention(model)
        prompts = batch.prompts()
        outputs = model.base_model(**prompts.model_inputs(), use_cache=True)
        count = sum(map(len, labels.token_ids))
        rows = max(min(count, self.tokens_per_pass), *map(len, labels.token_ids))
        _check_cache(outputs.past_key_values, prompts.input_ids.shape[1] + rows)
        prefix = _Prefix(
            model, outputs.past_key_values, prompts.attention_mask, prompts.next_position
        )

        last = outputs.last_hidden_state[:, -1:]  # (batch, 1, width), since padding is on the left
        first_tokens = [tokens[0] for tokens in labels.token_ids]
        first_ids = torch.tensor([first_tokens], device=last.device)
        scores = _log_probabilities(model, last, first_ids)[:, 0]  # (batch, classes)
        chunks = _cut_labels(labels.token_ids, self.tokens_per_pass)
        scores = scores + torch.cat([prefix.score(chunk) for chunk in chunks], dim=1)

        check_finite(scores, batch.sample_ids, "The model's log-probabilities of the classes")
        predicted = scores.argmax(dim=1)
        answers = tuple(labels.names[index] for index in predicted.tolist())
        return Predictions(answers, predicted, scores)


@dataclass(frozen=True)
class _Prefix:
    """The keys and values of the prompts, after which labels are scored; scoring leaves them as is.

    Attributes:
        model: The MLLM.
        cache: Keys and values of the prompts.
        attention_mask: (batch, prompt), 1 at real tokens.
        next_position: (batch, 1), the position of the first token after each prompt.
    """

    model: PreTrainedModel
    cache: Cache
    attention_mask: Tensor
    next_position: Tensor

    def score(self, labels: Sequence[tuple[int, ...]]) -> Tensor:
        """Return (batch, labels) float32: log p(tokens 1, 2, ... of a label | prompt, token 0)."""
        lengths = [len(tokens) - 1 for tokens in labels]
        batch, device = self.attention_mask.shape[0], self.attention_mask.device
        if not any(lengths):
            return torch.zeros(batch, len(labels), device=device)
        given = chain.from_iterable(tokens[:-1] for tokens in labels)
        expected = chain.from_iterable(tokens[1:] for tokens in labels)
        inputs = torch.tensor([*given], device=device)  # (row,)
        targets = torch.tensor([*expected], device=device)
        repeats = torch.tensor(lengths, device=device)
        label = torch.arange(len(labels), device=device).repeat_interleave(repeats)
        offset = torch.cat([torch.arange(length, device=device) for length in lengths])
        outputs = self.model.base_model(
            input_ids=inputs.expand(batch, -1),
            attention_mask=self._mask(label),
            position_ids=self.next_position + offset,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache.crop(-len(inputs))
        per_token = _log_probabilities(self.model, outputs.last_hidden_state, targets[:, None])
        per_label = torch.split(per_token[..., 0], lengths, dim=1)  # of (batch, row)
        return torch.stack([part.sum(dim=1) for part in per_label], dim=1)

    def _mask(self, label: Tensor) -> Tensor:
        """Return the additive mask, (batch, 1, row, prompt + row).

        A token attends to the prompt's real tokens, and to its own label up to itself.
        """
        row, (batch, prompt) = len(label), self.attention_mask.shape
        of_prompt = self.attention_mask.bool()[:, None].expand(batch, row, prompt)
        same_label = (label[:, None] == label).tril()  # (row, row)
        seen = torch.cat([of_prompt, same_label.expand(batch, row, row)], dim=2)
        keys: Tensor = self.cache.layers[0].keys  # type: ignore[union-attr,assignment]
        # in the queries' dtype, under autocast too
        mask = torch.zeros(seen.shape, dtype=keys.dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[:, None]


def _log_probabilities(model: PreTrainedModel, hidden: Tensor, ids: Tensor) -> Tensor:
    """Return the float32 log-probabilities of next tokens, (batch, row, k).

    At most (_HEAD_ROWS, vocabulary) logits exist at a time.

    Args:
        model: The MLLM.
        hidden: (batch, row, width), last hidden states.
        ids: (row, k), the next tokens.
    """
    head: nn.Module = model.get_output_embeddings()
    batch, row, _ = hidden.shape
    blocks = zip(
        hidden.flatten(0, 1).split(_HEAD_ROWS),
        ids.expand(batch, -1, -1).flatten(0, 1).split(_HEAD_ROWS),
        strict=True,
    )
    parts = []
    for states, wanted in blocks:
        logits = finish_logits(model.config, head(states)).float()  # (rows, vocabulary)
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


def _check_cache(cache: Cache | None, length: int) -> None:
    """Refuse a cache that would not keep the keys of `length` positions in every layer."""
    if cache is None:
        raise ConfigError(
            "Label likelihood needs keys and values of the prompt, which this model does not "
            "return. Use the generation scorer."
        )
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
