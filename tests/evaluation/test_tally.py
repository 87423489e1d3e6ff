from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_mllm.evaluation.tally import Tally


class Rows(Tally):
    """Counts rows as they are."""

    def update(self, *rows: tuple[int, ...]) -> None:
        self.add(rows)


def _beside(ours: Tally, theirs: Tally) -> Tally:
    """Let a tally gather as if there were another process."""

    def gather(table: Tensor, **_: Any) -> list[Tensor]:
        return [table, torch.cat(theirs.rows)]

    ours.distributed_available_fn, ours.dist_sync_fn = lambda: True, gather
    return ours


def test_processes_get_the_rows_of_all_and_keep_their_own() -> None:
    ours, theirs = Rows(2), Rows(2)
    ours.update((0, 1), (2, 3))
    ours.update((4, 5))
    theirs.update((6, 7))

    gathered = _beside(ours, theirs).compute()

    assert gathered.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert torch.cat(ours.rows).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_process_without_rows_adds_none() -> None:
    ours, theirs = Rows(3), Rows(3)
    ours.update()
    theirs.update((1, 2, 3))

    assert ours.compute().shape == (0, 3)
    ours.reset()
    ours.update()
    assert _beside(ours, theirs).compute().tolist() == [[1, 2, 3]]
