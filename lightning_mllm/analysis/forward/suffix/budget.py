"""How much work for single rows fits into memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_SCORE = 4  # bytes: eager attention computes its softmax in float32
_MIN_ROWS = 128
_MOST_ROWS = 2048  # more at once are not faster


@dataclass(frozen=True)
class BudgetPlan:
    """Sizes of pieces within a budget.

    Attributes:
        memory: Bytes in all.
        length: Positions of a prompt.
        prompt: Bytes that the clean run of a prompt takes, whose keys, values and residuals are
            kept.
        row: Bytes per row, without those of its keys.
        key: Bytes per pair of row and key.
    """

    memory: int
    length: int
    prompt: int
    row: int
    key: int

    @classmethod
    def of(cls, config: Any, length: int, dtype: torch.dtype, memory: int) -> BudgetPlan:
        """Plan for a decoder of this configuration, with weights of this dtype."""
        width, heads = config.hidden_size, config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or width // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        per_position = config.num_hidden_layers * (2 * key_heads * head_width + width)
        kept = length * per_position * dtype.itemsize
        states = length * (4 * width + 3 * config.intermediate_size) * dtype.itemsize
        scores = heads * length**2 * _SCORE
        row = (8 * width + 3 * config.intermediate_size) * dtype.itemsize
        return cls(memory, length, kept + states + scores, row, key=(2 * heads + 4) * _SCORE)

    def prompts(self, count: int) -> int:
        """Return how many prompts to run at a time: clean runs take half of the memory."""
        return max(1, min(count, self.memory // 2 // self.prompt))

    def side_by_side(self, start: int, prompts: int) -> int:
        """Return how many cases to run at a time, each with the rows from `start` on.

        The same rows with nothing hidden are added to them. Rows of different cases do not attend
        to each other, but their pairs are computed and thrown away. So there are never more rows
        than half the keys before them, unless one case has.

        Args:
            start: The first position whose row is computed.
            prompts: How many prompts are run at a time.
        """
        rows = self.length - start
        most = max(_MIN_ROWS, start // 2)
        room = self.memory - prompts * self.prompt
        fitting = room // (prompts * (self.row + self.key * (start + most)))
        return max(1, min(most, fitting) // rows - 1)

    def one_after_the_other(self, start: int, prompts: int) -> int:
        """Return how many cases to run at a time, each with rows and keys of its own.

        Args:
            start: The first position whose row is computed.
            prompts: How many prompts are run at a time, each with two clean runs.
        """
        rows = self.length - start
        room = self.memory - 2 * prompts * self.prompt
        fitting = room // (prompts * (rows * self.row + self.length * (rows * self.key + self.row)))
        return max(1, min(_MOST_ROWS // (rows * prompts), fitting))
