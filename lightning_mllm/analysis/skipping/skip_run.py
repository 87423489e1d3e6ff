"""What is computed while computations are skipped, decided for each forward and each layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.sample_tokens import SampleTokens, TokenPlaces
from lightning_mllm.analysis.skipping.choice import (
    choose_after_prompts,
    choose_in_prompts,
    choose_lowest,
    qualified_tokens,
)
from lightning_mllm.analysis.skipping.layer import (
    AttendingLayer,
    LayerSplit,
    run_layer,
    run_layer_beside,
    run_layer_in_parallel,
)
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.hooks import Arguments, Work


@dataclass(frozen=True)
class _Rows:
    """What is skipped in a layer, in one forward.

    Attributes:
        split: The rows of the layer, skipped and kept.
        any_row: Whether any row is skipped.
        unseen: (batch, keys) bool, the keys that no row can attend to; None if there is no such
            key.
    """

    split: LayerSplit
    any_row: bool
    unseen: Tensor | None


class SkipRun:
    """Decides what the layers compute instead; `begin` must be called before each decoder pass.

    Args:
        skip: What is skipped, and for which tokens.
        layers: The layers that skip; of parallel blocks the first of each pair.
        tokens: The samples that the model is run on.
    """

    def __init__(self, skip: Skip, layers: frozenset[int], tokens: SampleTokens) -> None:
        self._skip, self._layers, self._tokens = skip, layers, tokens
        self.places = TokenPlaces("skipping", tokens)
        self._rows: dict[int, _Rows] = {}  # of this forward
        self._entered: tuple[int, Tensor] | None = None  # the last layer reached, and its input
        # what left that layer, to which DeepStack adds afterwards
        self._left: Tensor | None = None
        self._in_prompts: dict[int, Tensor] = {}
        self._after_prompts: dict[int, Tensor] = {}

    def begin(self, arguments: Arguments) -> None:
        """Find out which tokens the decoder is run on."""
        self._rows.clear()
        self._entered = self._left = None
        self.places.begin(arguments)

    def leave(self, _: int, hidden: Tensor) -> None:
        """Take in what leaves a layer."""
        self._left = hidden

    def work(self, index: int, layer: nn.Module, hidden: Tensor, others: Arguments) -> Work | None:
        """Return what a layer computes instead; None for its own work."""
        before, self._entered = self._entered, (index, hidden)
        left = hidden if self._left is None else self._left
        if self._skip.computation == "parallel_blocks":
            if before is None or index - 1 not in self._layers:
                return None
            return partial(run_layer_beside, layer, others, before[1], left)
        if index not in self._layers:
            return None
        key = index if self._skip.per_layer else -1
        if key not in self._rows:
            self._rows[key] = self._find(index, key, left, before)
        rows = self._rows[key]
        if not rows.any_row and rows.unseen is None:
            return None
        if self._skip.computation == "parallel":
            return partial(run_layer_in_parallel, layer, others, rows.split)
        attending = (
            None if self._skip.computation == "ffn" else AttendingLayer(rows.split, rows.unseen)
        )
        feeding = None if self._skip.computation == "attention" else rows.split
        return partial(run_layer, layer, others, attending, feeding)

    def _find(self, layer: int, key: int, left: Tensor, before: tuple[int, Tensor] | None) -> _Rows:
        """Return what is skipped in a layer."""
        skip, past, in_prompt = self._skip, self.places.past, self.places.in_prompt
        ranks = skip.choice == "lowest_change" and bool(in_prompt[:, past:].any())
        if ranks and before is not None:
            self._in_prompts[key] = self._choose_least_changed(before[1], left, in_prompt)
        keys = torch.zeros_like(in_prompt)
        if skip.phase != "decode":
            keys = self.places.gather_prompt(self._choose_in_prompts(layer, key))
        if skip.phase != "prefill" and skip.tokens != "perceptual":
            places, lengths = self.places.numbers, self.places.lengths
            table = self._choose_after_prompts(layer, key, places.shape[1])
            table = table.repeat_interleave(self.places.repeats, dim=0)
            keys |= (places >= lengths) & table.gather(1, (places - lengths).clamp(min=0))
        hides = skip.computation in ("block", "attention") and not skip.visible and bool(keys.any())
        rows = keys[:, past:]
        if bool((rows | (self.places.numbers[:, past:] < 0)).all()):
            rows = torch.ones_like(rows)  # nothing has to be run for padding alone
        return _Rows(LayerSplit(rows), bool(keys[:, past:].any()), keys if hides else None)

    def _choose_in_prompts(self, layer: int, key: int) -> Tensor:
        """Return which tokens of the prompts are chosen, (samples, prompt) bool."""
        if key not in self._in_prompts and self._skip.choice == "lowest_change":
            raise ConfigError(
                "Skip.choice lowest_change needs the prompts' own pass, but the model continues "
                "from keys and values of before. Run the prompts within the `with` block too."
            )
        if key not in self._in_prompts:
            self._in_prompts[key] = choose_in_prompts(self._tokens, self._skip, layer)
        return self._in_prompts[key]

    def _choose_after_prompts(self, layer: int, key: int, count: int) -> Tensor:
        """Return which tokens after the prompts are chosen, (samples, count or more) bool."""
        known = self._after_prompts.get(key)
        if known is None or known.shape[1] < count:
            known = choose_after_prompts(self._tokens, self._skip, layer, 2 * count)
            self._after_prompts[key] = known
        return known

    def _choose_least_changed(self, before: Tensor, hidden: Tensor, in_prompt: Tensor) -> Tensor:
        """Return which tokens of the prompts are chosen, (samples, prompt) bool.

        They are those whose residual stream the layer before has changed least.

        Args:
            before: (batch, rows, width), what entered the layer before.
            hidden: (batch, rows, width), what left it.
            in_prompt: (batch, keys) bool, which keys are tokens of prompts.
        """
        rows, repeats = in_prompt[:, self.places.past :], self.places.repeats
        if self.places.past or bool((rows.sum(1, keepdim=True) < self.places.lengths).any()):
            raise ConfigError(
                "Skip.choice lowest_change ranks all tokens of a prompt, but the model gets only "
                "a part of it. Run the prompts in one go, or set choice: random or strided."
            )
        old, new = before.detach().double(), hidden.detach().double()
        change = (new - old).norm(dim=-1) / old.norm(dim=-1)  # (batch, rows)
        dump = self._tokens.perceptual.shape[1]  # an extra place, for rows of no prompt
        table = change.new_zeros(len(change), dump + 1)
        table.scatter_(1, self.places.numbers.masked_fill(~rows, dump), change)
        qualified = qualified_tokens(self._tokens, self._skip)
        return choose_lowest(table[::repeats, :dump], qualified, self._skip.share)
