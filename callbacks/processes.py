"""Rows of all processes."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Row = TypeVar("Row")


def of_all_processes(rows: list[Row]) -> list[Row]:
    """Return the rows of this process, then those of the next one, and so on; each process gets all."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    gathered: list[list[Row]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
