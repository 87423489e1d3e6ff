"""Counts per sample, over all processes: for intervals that know which picture each is about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Tally(Metric):
    """A row of integers per sample, across batches and processes; a subclass `add`s them.

    Args:
        columns: Length of a row.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    rows: list[Tensor]

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows; an empty table stays, so that a process without rows has one to send."""
        super().reset()
        self.rows.append(torch.zeros(0, self.columns, dtype=torch.int64, device=self.device))

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        """Add the rows of a batch, of which there may be none."""
        table = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.rows.append(table.reshape(-1, self.columns))

    def compute(self) -> Tensor:
        """Return the rows of all processes, (samples, columns) int64."""
        return dim_zero_cat(self.rows)  # of several processes they come as one table
