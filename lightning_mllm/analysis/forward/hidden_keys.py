"""Keys that some queries cannot attend to, as positions of a batch: what a block does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_mllm.analysis.core.windows import Window
from lightning_mllm.batches import TokenSpans
from lightning_mllm.errors import DataError
from lightning_mllm.families import Sees
from lightning_mllm.types import Segment


@dataclass(frozen=True, eq=False)
class HiddenKeys:
    """Which keys are hidden from which queries.

    Attributes:
        source: (batch, sequence) bool, the keys that are hidden.
        target: (batch, sequence) bool, the queries from which they are hidden.
        heads: (layers, heads) bool, the attention heads in which they are; None for all.
        name: What hides them, for messages.
        horizon: (batch, sequence), the last position that each can attend to; None if this is
            itself.
    """

    source: Tensor
    target: Tensor
    heads: Tensor | None = None
    name: str = "nothing"
    horizon: Tensor | None = None

    @classmethod
    def nothing(cls, real: Tensor) -> HiddenKeys:
        """Hide no key from any query; `real` is (batch, sequence) of the prompts."""
        nowhere = torch.zeros_like(real)
        return cls(nowhere, nowhere)

    @cached_property
    def reached(self) -> Tensor:
        """(batch, sequence), the target positions that could attend to a source position."""
        return self.target & (self.count_seen(self.source) > 0)

    @cached_property
    def acts(self) -> Tensor:
        """(batch,), whether anything is hidden that could be attended to."""
        return self.reached.any(1)

    @cached_property
    def first_changed(self) -> int:
        """The first position that is changed in any prompt; 0 if there is none.

        In a layer those that are reached change, in the next one all that can attend to them.
        """
        if not self.acts.any():
            return 0
        length = self.reached.shape[1]
        first = self.reached.int().argmax(1, keepdim=True).where(self.acts[:, None], length)
        if self.horizon is not None:
            first = (self.horizon < first).sum(1)
        return int(first.min())

    def count_seen(self, keys: Tensor) -> Tensor:
        """Return how many of these keys each position could attend to, (batch, sequence)."""
        counts = keys.cumsum(1)
        return counts if self.horizon is None else counts.gather(1, self.horizon)

    @cached_property
    def _heads_of_layers(self) -> list[tuple[bool, ...]]:
        return [] if self.heads is None else [tuple(each) for each in self.heads.tolist()]

    def heads_at(self, layer: int) -> tuple[bool, ...] | None:
        """Return in which heads of a layer they are hidden; None for all."""
        return self._heads_of_layers[layer] if self._heads_of_layers else None

    def within(self, window: Window) -> HiddenKeys:
        """Return the same, or no target where the window has none of the heads."""
        if self.heads is None or self.heads[window.start : window.stop].any():
            return self
        return replace(self, target=torch.zeros_like(self.target))

    def take(self, rows: Sequence[int]) -> HiddenKeys:
        """Return the same for a run of the prompts."""
        some = slice(rows[0], rows[-1] + 1)
        horizon = None if self.horizon is None else self.horizon[some]
        return HiddenKeys(self.source[some], self.target[some], self.heads, self.name, horizon)

    def pairs(self, rows: slice, keys: int, repeats: int, layer: int) -> Tensor:
        """Return which pairs are hidden, (batch x repeats, 1 or heads, rows, keys) bool.

        Args:
            rows: The queries.
            keys: Number of keys; those after the batch's own positions are never hidden.
            repeats: How often each prompt stands in the model's batch, one after the other.
            layer: In which layer, from 0.
        """
        source, target = (
            _fit(each, keys).repeat_interleave(repeats, dim=0)
            for each in (self.source, self.target)
        )
        pairs = (target[:, rows, None] & source[:, None])[:, None]
        return pairs if self.heads is None else pairs & self.heads[layer, :, None, None]


def find_horizons(sees: Sees, spans: TokenSpans) -> Tensor | None:
    """Return the last position that each can attend to, (batch, sequence); None if it is itself.

    Args:
        sees: What a position can see besides earlier ones.
        spans: Where the segments are.

    Raises:
        DataError: The batch lacks the positions of the segment that is seen as a whole.
    """
    if sees == "causal":
        return None
    segment = Segment.LAST if sees == "prompt whole" else Segment.IMAGE
    if segment not in spans.masks:
        raise DataError(
            f"The batch does not say where {str(segment)!r} is, up to which the model's tokens see "
            "later ones. Collate it with this segment."
        )
    mask = spans[segment]
    places = torch.arange(mask.shape[1], device=mask.device)
    if segment is Segment.LAST:
        return torch.maximum(places, mask.int().argmax(1, keepdim=True))
    ends = mask & ~_fit(mask[:, 1:], len(places))
    next_end = places.expand_as(mask).masked_fill(~ends, len(places)).flip(1).cummin(1).values
    return next_end.flip(1).where(mask, places)


def _fit(mask: Tensor, length: int) -> Tensor:
    """Cut a mask, or fill it up with False, to a length."""
    return nn.functional.pad(mask, (0, max(0, length - mask.shape[1])))[:, :length]
