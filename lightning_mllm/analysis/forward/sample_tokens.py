"""The prompts of samples in their own numbering: 0 is a sample's first real token.

What is chosen by these numbers depends neither on the side of the padding, nor on the other samples
of a batch, nor on whether a sample goes through the model at once or token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mllm.analysis.forward.caches import positions_of_cache
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.hooks import Arguments
from lightning_mllm.types import Segment


@dataclass(frozen=True)
class SampleTokens:
    """The prompts of some samples, in their own numbering.

    Attributes:
        sample_ids: Ids of the samples.
        perceptual: (batch, prompt) bool, the tokens of images, as long as the longest prompt.
        lengths: (batch,), the number of tokens of each prompt, LAST included.
    """

    sample_ids: tuple[str, ...]
    perceptual: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, batch: MultimodalBatch) -> SampleTokens:
        """Find the prompts in a batch, with or without answers, padded on either side."""
        real, last = batch.attention_mask.bool(), batch.spans[Segment.LAST]
        after = last.cumsum(1) - last.long()  # 1 after LAST
        lengths = (real & (after == 0)).sum(1)
        places = torch.arange(int(lengths.max()), device=real.device)
        columns = real.int().argmax(1, keepdim=True) + places  # of each token in the batch
        perceptual = batch.spans[Segment.IMAGE].gather(1, columns.clamp(max=real.shape[1] - 1))
        return cls(batch.sample_ids, perceptual & (places < lengths[:, None]), lengths)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sample_ids)

    @property
    def prompt(self) -> Tensor:
        """(batch, prompt) bool: where the prompt has a token."""
        places = torch.arange(self.perceptual.shape[1], device=self.lengths.device)
        return places < self.lengths[:, None]

    def to(self, device: torch.device) -> SampleTokens:
        """Move all tensors."""
        return SampleTokens(self.sample_ids, self.perceptual.to(device), self.lengths.to(device))

    def take(self, rows: Sequence[int]) -> SampleTokens:
        """Return some of the samples."""
        ids = tuple(self.sample_ids[row] for row in rows)
        return SampleTokens(ids, self.perceptual[list(rows)], self.lengths[list(rows)])


class TokenPlaces:
    """Finds which tokens the decoder is run on; `begin` must be called before each of its passes.

    Args:
        edit: What needs to know it, for messages.
        tokens: The samples that the model is run on.

    Attributes:
        numbers: (batch, keys), the number of each key in its sample, -1 at padding.
        past: How many keys are cached.
    """

    def __init__(self, edit: str, tokens: SampleTokens) -> None:
        self._edit, self._tokens = edit, tokens
        self._longest = int(tokens.lengths.max())
        device = tokens.lengths.device
        self.numbers = torch.empty(len(tokens), 0, dtype=torch.long, device=device)
        self.past = 0
        # (batch, 1), by how much the number of a token after the prompt is above its position
        self._ahead = torch.zeros(1, 1, dtype=torch.long, device=device)

    @property
    def repeats(self) -> int:
        """How often each sample stands in the model's batch, one after the other."""
        return len(self.numbers) // len(self._tokens)

    @property
    def lengths(self) -> Tensor:
        """(batch, 1), the number of tokens of each prompt."""
        return self._tokens.lengths.repeat_interleave(self.repeats)[:, None]

    @property
    def in_prompt(self) -> Tensor:
        """(batch, keys) bool, which keys are tokens of prompts."""
        return (self.numbers >= 0) & (self.numbers < self.lengths)

    def gather_prompt(self, table: Tensor) -> Tensor:
        """Return what a (samples, prompt) table has for each key, (batch, keys); 0 elsewhere."""
        own = table.repeat_interleave(self.repeats, dim=0)
        found = own.gather(1, self.numbers.clamp(0, table.shape[1] - 1))
        return found.where(self.in_prompt, 0).to(table.dtype)

    def begin(self, arguments: Arguments) -> None:
        """Find out which tokens the decoder is run on.

        Raises:
            ConfigError: It is run on other samples, or its cache is static or slides.
        """
        self.numbers, self.past = _find_places(arguments, self.numbers, self._ahead)
        if not self.past:
            self._ahead = _count_ahead(arguments.get("position_ids"), self.numbers)
        size = len(self._tokens)
        batch, length = self.numbers.shape
        if batch % size or length < self._longest:
            raise ConfigError(
                f"`{self._edit}` was given {size} samples with prompts of up to {self._longest} "
                f"tokens, but the model is run on {batch} sequences of {length}. Give "
                f"`{self._edit}` the batch that the model gets."
            )
        if not self.past:
            self._check_lengths()

    def _check_lengths(self) -> None:
        """Refuse sequences that are too short for the prompts that should stand there."""
        tokens = self._tokens
        counts = self.numbers.amax(1).view(len(tokens), -1).amin(1) + 1
        for row in (counts < tokens.lengths).nonzero()[:1, 0].tolist():
            raise ConfigError(
                f"The prompt of sample {tokens.sample_ids[row]!r} has {int(tokens.lengths[row])} "
                f"tokens, but in its place the model is run on {int(counts[row])}. Give "
                f"`{self._edit}` the samples that the model gets, in their order."
            )


def _count_ahead(positions: Tensor | None, places: Tensor) -> Tensor:
    """Return by how much each last token's number is above its position, (batch, 1).

    Positions of several axes stay behind the numbers, since the tokens of an image share some.
    """
    if positions is None:
        return torch.zeros_like(places[:, :1])
    largest = positions.view(-1, *positions.shape[-2:]).amax(0)  # of all axes
    last = largest.masked_fill(places < 0, 0).amax(1, keepdim=True)
    return places.amax(1, keepdim=True) - last


def _find_places(arguments: Arguments, before: Tensor, ahead: Tensor) -> tuple[Tensor, int]:
    """Return the number of each key in its sample, and how many keys are cached.

    The numbers are (batch, keys), -1 at padding.

    Args:
        arguments: What the decoder is called with.
        before: What was returned at the last call.
        ahead: (batch, 1), by how much numbers after the prompts are above positions.
    """
    embedded = arguments.get("inputs_embeds")
    entering: Tensor = arguments["input_ids"] if embedded is None else embedded
    batch, count = entering.shape[:2]
    past, mask = (
        positions_of_cache(arguments.get("past_key_values")),
        arguments.get("attention_mask"),
    )
    if mask is None:
        return torch.arange(past + count, device=entering.device).expand(batch, -1), past
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == past + count:
        return (mask.long().cumsum(1) - 1).masked_fill(mask == 0, -1), past
    numbers = arguments.get("position_ids")
    if numbers is None or not 0 < past <= before.shape[1] or len(before) != batch:
        raise ConfigError(
            "It is unknown which tokens the model is run on: its attention mask is not (batch, "
            "keys), and it does not continue, with position_ids, from keys of this `with` block. "
            "Run the prompts in it, with a mask of 0 and 1."
        )
    after = numbers.view(-1, *numbers.shape[-2:])[-1] + ahead  # after prompts all axes are alike
    return torch.cat([before[:, :past], after.expand(batch, -1)], dim=1), past
