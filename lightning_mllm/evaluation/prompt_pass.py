"""One pass of a model over a batch, after which all answers to its prompts are scored and decoded.

A prompt is long, an image stands in it, and an answer is short. So the prompts are computed once,
and whatever asks for an answer goes on from their keys and values, which it leaves as they were.

The pass can be that of the loss, over prompts and reference answers. Nothing in a prompt sees what
comes after it, in any family, so its keys are the same; a mask hides the reference from what is
appended, whose positions go on from the prompt:

```
             prompt   reference   new
 new       | ■ ■ ■ ■  . . . . .   ■ . .
           | ■ ■ ■ ■  . . . . .   ■ ■ .
```

That takes a cache that keeps the keys of all positions. Where layers have a sliding window of
fewer, or no keys (linear attention), the prompts are run by themselves, for each that asks. They
also are, but once for all, where each token is rounded by what stands in all (LLM.int8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.families import finish_logits
from lightning_mllm.types import Segment


class PromptPass:
    """The prompts of a batch, their last states, and their keys and values.

    The model runs when one of them is first needed, in the contexts that are open then. Contexts
    that change what it computes must stay open as long as the pass is used.

    Args:
        model: The MLLM.
        batch: Prompts; there may be answers after them.
        with_answers: Whether the model runs over the answers too, where nothing of a prompt depends
            on them and the cache keeps all keys.

    Attributes:
        model: The MLLM.
        batch: The batch as given.
        with_answers: Whether the model runs over the answers too.
    """

    def __init__(
        self, model: PreTrainedModel, batch: MultimodalBatch, *, with_answers: bool = False
    ) -> None:
        self.model, self.batch = model, batch
        self._reach = _find_reach(model)
        allowed = self._keeps(batch.input_ids.shape[1]) and not rounds_by_all_tokens(model)
        self.with_answers = with_answers and allowed
        self._given: MultimodalBatch | None = None
        self._hidden: Tensor | None = None
        self._cache: Cache | None = None

    @property
    def inputs(self) -> MultimodalBatch:
        """What the model runs on: the batch, or its prompts, padded on the left."""
        if self._given is None:
            self._given = self.batch if self.with_answers else self.batch.prompts()
        return self._given

    @property
    def hidden(self) -> Tensor:
        """(batch, sequence, width): the last hidden states of `inputs`."""
        if self._hidden is None:
            self._run()
        assert self._hidden is not None
        return self._hidden

    @property
    def last(self) -> Tensor:
        """(batch, 1, width): the state after each prompt, which predicts the first new token."""
        last = self.inputs.spans[Segment.LAST].int().argmax(dim=1).to(self.hidden.device)
        return self.hidden[torch.arange(len(last), device=last.device), last][:, None]

    @property
    def seen(self) -> Tensor:
        """(batch, sequence) long: 1 where a position of `inputs` is of a prompt, padding is not."""
        last = self.inputs.spans[Segment.LAST].long()
        return self.inputs.attention_mask * (1 - last.cumsum(dim=1) + last)

    @property
    def cache(self) -> Cache:
        """Keys and values of `inputs`, and of what `extend` has added."""
        if self._cache is None:
            self._run()
        assert self._cache is not None
        return self._cache

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., vocabulary), as the model's own forward."""
        head: nn.Module = self.model.get_output_embeddings()
        return finish_logits(self.model.config, head(hidden))

    def with_room(self, rows: int) -> PromptPass:
        """Return the pass after which so many positions can be run: this one, or of prompts only.

        The reference answers take places of a sliding window.
        """
        fits = not self.with_answers or self._keeps(self.inputs.input_ids.shape[1] + rows)
        return self if fits else PromptPass(self.model, self.batch)

    def take(self, rows: Sequence[int]) -> PromptPass:
        """Return the pass of some samples. It gets their keys; this one would run again."""
        if list(rows) == list(range(len(self.batch))):
            return self
        part = PromptPass(self.model, self.batch.take(rows), with_answers=self.with_answers)
        if self._hidden is not None and self._keeps(self.inputs.input_ids.shape[1]):
            index = torch.tensor(rows)  # on the CPU, since layers may be on several devices
            self.cache.batch_select_indices(index)
            part._given = self.inputs.take(rows)
            part._hidden, part._cache = self._hidden[index], self._cache
            self._forget()
        return part

    @torch.no_grad()
    def extend(self, ids: Tensor, steps: Tensor | int, mask: Tensor) -> Tensor:
        """Run tokens after the prompts and what was added before; return (batch, row, width).

        Args:
            ids: (batch, row), the tokens.
            steps: How many positions after the first new one each token is; (row,) or a number.
            mask: (batch, keys), 1 where all tokens can attend, each up to itself; or additive,
                (batch, 1, row, keys).
        """
        first = (self.inputs.steps * self.seen).sum(-1, keepdim=True)
        try:
            outputs = self.model.base_model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=first + steps,
                past_key_values=self.cache,
                use_cache=True,
            )
        except BaseException:  # e.g. no memory: some layers have got keys, others haven't
            self._forget()
            raise
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    def restore(self) -> None:
        """Take away what was added; where the cache can't, the next that asks runs the prompts."""
        if self._hidden is None:
            return
        length = self.inputs.input_ids.shape[1]
        added = self.cache.get_seq_length() - length
        if added and self._keeps(length + added):
            self.cache.crop(-added)
        elif added:
            self._forget()

    @torch.no_grad()
    def _run(self) -> None:
        cache = DynamicCache(config=self.model.config)
        inputs = self.inputs.model_inputs()
        outputs = self.model.base_model(**inputs, past_key_values=cache, use_cache=True)
        self._hidden, self._cache = outputs.last_hidden_state, cache

    def _forget(self) -> None:
        self._hidden = self._cache = None

    def _keeps(self, length: int) -> bool:
        """Return whether the cache keeps the keys of so many positions in every layer."""
        return length < self._reach


def rounds_by_all_tokens(model: PreTrainedModel) -> bool:
    """Return whether a model rounds each token by what stands in all, as LLM.int8 does."""
    return bool(getattr(model, "is_loaded_in_8bit", False))


def _find_reach(model: PreTrainedModel) -> float:
    """Return below which number of positions a model's cache keeps all keys in every layer."""
    reach = math.inf
    for layer in DynamicCache(config=model.config).layers:
        if not hasattr(layer, "keys") or hasattr(layer, "conv_states"):  # linear attention
            return 0
        window: int | None = getattr(layer, "sliding_window", None)
        reach = min(reach, math.inf if window is None else window)
    return reach
