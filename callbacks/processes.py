"""Collects what the processes of a distributed run found."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Row = TypeVar("Row")


def gather_from_processes(rows: list[Row]) -> list[Row]:
    """Return the rows of all processes, in the order of their ranks; each process gets all."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts: list[list[Row]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, rows)
    gathered: list[Row] = []
    for part in parts:
        gathered += part
    return gathered
