"""What is computed while computations are skipped: decided forward by forward and layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.caches import cached_positions
from lightning_mllm.analysis.skipping.choice import SampleTokens, chosen_behind_prompts, chosen_in_prompts, lowest
from lightning_mllm.analysis.skipping.layer import Attending, Split, run_beside, run_in_parallel, run_layer
from lightning_mllm.analysis.skipping.spec import Skip
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.hooks import Arguments, Work


@dataclass(frozen=True)
class _Rows:
    """What is skipped in a layer, in one forward.

    Attributes:
        split: Its rows.
        any_row: Whether any of them is skipped.
        unseen: (batch, keys) bool, the keys that nobody sees; None if all are seen.
    """

    split: Split
    any_row: bool
    unseen: Tensor | None


class SkipRun:
    """Stands in for the layers; `begin` has to hear of each call of the decoder.

    Args:
        skip: What is skipped.
        layers: In which layers; of parallel blocks the first ones.
        tokens: The samples that the model is run on.
    """

    def __init__(self, skip: Skip, layers: frozenset[int], tokens: SampleTokens) -> None:
        self._skip, self._layers, self._tokens = skip, layers, tokens
        self._longest = int(tokens.lengths.max())
        self._places = torch.empty(len(tokens), 0, dtype=torch.long, device=tokens.lengths.device)
        self._past = 0
        self._rows: dict[int, _Rows] = {}  # of this forward
        self._entered: tuple[int, Tensor] | None = None  # the last layer that was reached, and what entered it
        self._in_prompts: dict[int, Tensor] = {}
        self._behind: dict[int, Tensor] = {}

    def begin(self, arguments: Arguments) -> None:
        """Find out which tokens the decoder is run on."""
        self._rows.clear()
        self._entered = None
        self._places, self._past = _places(arguments, self._places)
        (batch, length), size = self._places.shape, len(self._tokens)
        if batch % size or length < self._longest:
            raise ConfigError(
                f"What is skipped is said for {size} samples with prompts of up to {self._longest} tokens, but the "
                f"model is run on {batch} sequences of {length}. Give `skipping` the batch that the model gets."
            )
        if not self._past:
            self._check_lengths()

    def _check_lengths(self) -> None:
        """Refuse sequences that are too short for the prompts that should stand there."""
        tokens = self._tokens
        counts = self._places.amax(1).view(len(tokens), -1).amin(1) + 1
        for row in (counts < tokens.lengths).nonzero()[:1, 0].tolist():
            raise ConfigError(
                f"The prompt of sample {tokens.sample_ids[row]!r} has {int(tokens.lengths[row])} tokens, but in its "
                f"place the model is run on {int(counts[row])}. Give `skipping` the samples that the model gets, in "
                "their order."
            )

    def work(self, index: int, layer: nn.Module, hidden: Tensor, others: Arguments) -> Work | None:
        """Return what a layer computes instead; None for its own work."""
        before, self._entered = self._entered, (index, hidden)
        if self._skip.computation == "parallel_blocks":
            if before is None or index - 1 not in self._layers:
                return None
            return partial(run_beside, layer, others, before[1])
        if index not in self._layers:
            return None
        key = index if self._skip.per_layer else -1
        if key not in self._rows:
            self._rows[key] = self._find(index, key, hidden, before)
        rows = self._rows[key]
        if not rows.any_row and rows.unseen is None:
            return None
        if self._skip.computation == "parallel":
            return partial(run_in_parallel, layer, others, rows.split)
        attending = None if self._skip.computation == "ffn" else Attending(rows.split, rows.unseen)
        feeding = None if self._skip.computation == "attention" else rows.split
        return partial(run_layer, layer, others, attending, feeding)

    def _find(self, layer: int, key: int, hidden: Tensor, before: tuple[int, Tensor] | None) -> _Rows:
        """Return what is skipped in a layer."""
        skip, places, past = self._skip, self._places, self._past
        repeats = len(places) // len(self._tokens)
        lengths = self._tokens.lengths.repeat_interleave(repeats)[:, None]
        in_prompt = (places >= 0) & (places < lengths)
        if skip.choice == "lowest_change" and before is not None and bool(in_prompt[:, past:].any()):
            self._in_prompts[key] = self._least_changed(before[1], hidden, in_prompt)
        keys = torch.zeros_like(in_prompt)
        if skip.phase != "decode":
            table = self._chosen_in_prompts(layer, key).repeat_interleave(repeats, dim=0)
            keys = in_prompt & table.gather(1, places.clamp(0, table.shape[1] - 1))
        if skip.phase != "prefill" and skip.tokens != "perceptual":
            table = self._chosen_behind(layer, key, places.shape[1]).repeat_interleave(repeats, dim=0)
            keys |= (places >= lengths) & table.gather(1, (places - lengths).clamp(min=0))
        hides = skip.computation in ("block", "attention") and not skip.visible and bool(keys.any())
        rows = keys[:, past:]
        if bool((rows | (places[:, past:] < 0)).all()):
            rows = torch.ones_like(rows)  # for padding alone nothing has to be run
        return _Rows(Split(rows), bool(keys[:, past:].any()), keys if hides else None)

    def _chosen_in_prompts(self, layer: int, key: int) -> Tensor:
        """Return which tokens of the prompts are chosen, (samples, prompt) bool."""
        if key not in self._in_prompts and self._skip.choice == "lowest_change":
            raise ConfigError(
                "Skip.choice lowest_change needs the prompts' own pass, but the model goes on from keys and values of "
                "before. Run the prompts within the `with` block too."
            )
        if key not in self._in_prompts:
            self._in_prompts[key] = chosen_in_prompts(self._tokens, self._skip, layer)
        return self._in_prompts[key]

    def _chosen_behind(self, layer: int, key: int, count: int) -> Tensor:
        """Return which tokens behind the prompts are chosen, (samples, count or more) bool."""
        if key not in self._behind or self._behind[key].shape[1] < count:
            self._behind[key] = chosen_behind_prompts(self._tokens, self._skip, layer, 2 * count)
        return self._behind[key]

    def _least_changed(self, before: Tensor, hidden: Tensor, in_prompt: Tensor) -> Tensor:
        """Return the tokens of the prompts that the layer before has changed least, (samples, prompt) bool."""
        rows, repeats = in_prompt[:, self._past :], len(in_prompt) // len(self._tokens)
        if self._past or bool((rows.sum(1) < self._tokens.lengths.repeat_interleave(repeats)).any()):
            raise ConfigError(
                "Skip.choice lowest_change ranks all tokens of a prompt, but the model gets only a part of it. Run the "
                "prompts in one go, or set choice: random or strided."
            )
        old, new = (each.detach().double() for each in (before, hidden))
        change = (new - old).norm(dim=-1) / old.norm(dim=-1)  # (batch, rows)
        dump = self._tokens.perceptual.shape[1]  # one place more, for rows of no prompt
        table = change.new_zeros(len(change), dump + 1)
        table.scatter_(1, self._places.masked_fill(~rows, dump), change)
        return lowest(table[::repeats, :dump], self._tokens.qualified(self._skip), self._skip.share)


def _places(arguments: Arguments, before: Tensor) -> tuple[Tensor, int]:
    """Return the number of each key in its sample, (batch, keys), -1 at padding, and how many keys are cached.

    Args:
        arguments: What the decoder is called with.
        before: What was returned at the last call.
    """
    embedded = arguments.get("inputs_embeds")
    entering: Tensor = arguments["input_ids"] if embedded is None else embedded
    batch, count = entering.shape[:2]
    past, mask = cached_positions(arguments.get("past_key_values")), arguments.get("attention_mask")
    if mask is None:
        return torch.arange(past + count, device=entering.device).expand(batch, -1), past
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == past + count:
        return (mask.long().cumsum(1) - 1).masked_fill(mask == 0, -1), past
    numbers = arguments.get("position_ids")
    if numbers is None or not 0 < past <= before.shape[1] or len(before) != batch:
        raise ConfigError(
            "It can't be told which tokens the model is run on: its attention mask is not (batch, keys), and it does "
            "not go on, with position_ids, from keys of this `with` block. Run the prompts in it, with a mask of 0 "
            "and 1."
        )
    return torch.cat([before[:, :past], numbers.expand(batch, -1)], dim=1), past
