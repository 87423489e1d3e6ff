"""Keys that some queries cannot attend to, as positions of a batch: what a block does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class HiddenKeys:
    """Which keys are hidden from which queries.

    Attributes:
        source: (batch, sequence) bool, the keys that are hidden.
        target: (batch, sequence) bool, the queries from which they are hidden.
        heads: (heads,) bool, the attention heads in which they are; None for all.
        name: What hides them, for messages.
    """

    source: Tensor
    target: Tensor
    heads: Tensor | None = None
    name: str = "nothing"

    @classmethod
    def nothing(cls, real: Tensor) -> HiddenKeys:
        """Hide no key from any query; `real` is (batch, sequence) of the prompts."""
        nowhere = torch.zeros_like(real)
        return cls(nowhere, nowhere)

    @cached_property
    def reached(self) -> Tensor:
        """(batch, sequence), the target positions that could attend to a source position."""
        return self.target & (self.source.cumsum(1) > 0)

    @cached_property
    def acts(self) -> Tensor:
        """(batch,), whether anything is hidden that could be attended to."""
        return self.reached.any(1)

    @cached_property
    def first_reached(self) -> int:
        """The first position that is reached in any prompt; 0 if there is none."""
        return int(self.reached.any(0).int().argmax())

    def take(self, rows: Sequence[int]) -> HiddenKeys:
        """Return the same for a run of the prompts."""
        some = slice(rows[0], rows[-1] + 1)
        return HiddenKeys(self.source[some], self.target[some], self.heads, self.name)

    def pairs(self, rows: slice, keys: int, repeats: int) -> Tensor:
        """Return which pairs are hidden, (batch x repeats, 1 or heads, rows, keys) bool.

        Args:
            rows: The queries.
            keys: Number of keys; those after the batch's own positions are never hidden.
            repeats: How often each prompt stands in the model's batch, one after the other.
        """
        source, target = (
            _fit(each, keys).repeat_interleave(repeats, dim=0)
            for each in (self.source, self.target)
        )
        pairs = (target[:, rows, None] & source[:, None])[:, None]
        return pairs if self.heads is None else pairs & self.heads[:, None, None]


def _fit(mask: Tensor, length: int) -> Tensor:
    """Cut a mask, or fill it up with False, to a length."""
    return nn.functional.pad(mask, (0, max(0, length - mask.shape[1])))[:, :length]
