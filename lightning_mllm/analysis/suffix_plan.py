"""How much of the suffix engine's work fits into memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_FLOAT = 4  # bytes; planned for float32 even where the model is in half precision: eager attention computes in it
_MIN_ROWS = 128


@dataclass(frozen=True)
class Plan:
    """Sizes of pieces within a budget.

    Attributes:
        prompts: Prompts at a time.
        length: Positions of each.
        room: Bytes beside the clean run, for the rows of all these prompts.
        row: Bytes per row, keys aside.
        key: Bytes per pair of row and key.
    """

    prompts: int
    length: int
    room: int
    row: int
    key: int

    @classmethod
    def of(cls, config: Any, shape: tuple[int, ...], memory: int) -> Plan:
        """Plan for a decoder of this configuration and prompts of shape (batch, sequence).

        Half the budget is for the clean run, whose keys, values and residuals are kept, and half for the rows.
        """
        batch, length = shape
        width, heads = config.hidden_size, config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or width // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        kept = config.num_hidden_layers * length * (2 * key_heads * head_width + width) * _FLOAT
        passing = length * (4 * width + 3 * config.intermediate_size + heads * length) * _FLOAT
        prompts = max(1, min(batch, memory // 2 // (kept + passing)))
        row = (8 * width + 3 * config.intermediate_size) * _FLOAT
        return cls(prompts, length, memory // 2, row, key=(2 * heads + 4) * _FLOAT)

    def side_by_side(self, start: int) -> int:
        """Return how many cases to run at a time, of which each has the rows from `start` on.

        Rows of different cases do not see each other, but their pairs are computed and thrown away: so there are
        never more rows than half the keys before them.
        """
        rows = self.length - start
        most = max(_MIN_ROWS, start // 2)
        fitting = self.room // (self.prompts * (self.row + self.key * (start + most)))
        return max(1, min(most, fitting) // rows)
