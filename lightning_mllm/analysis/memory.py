"""How much memory there is, and going on with less at a time when it runs out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

_LOG = logging.getLogger(__name__)
_UNKNOWN = 4 * 2**30  # where the system does not say what is free
_LEAST = 2**30  # what the system caches counts as used, though it gives it back
_T = TypeVar("_T")
_Thing = TypeVar("_Thing")


def free_bytes(device: torch.device) -> int:
    """Return about how much can still be allocated; on the CPU at least a GiB is assumed."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        return max(_LEAST, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on Windows, not on macOS
        return _UNKNOWN


class Pieces:
    """Runs things some at a time; out of memory, it goes on with half as many, from then on.

    Attributes:
        name: What the things are called in the log.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._limit: int | None = None

    def run(self, things: Sequence[_Thing], size: int, function: Callable[[Sequence[_Thing]], _T]) -> list[_T]:
        """Return function(piece) for consecutive pieces of `size` or fewer things."""
        results: list[_T] = []
        start = 0
        while start < len(things):
            piece = things[start : start + min(size, self._limit or size)]
            try:
                results.append(function(piece))
                start += len(piece)
                continue
            except torch.OutOfMemoryError:
                if len(piece) == 1:
                    raise
            # here and not above, where the error would keep alive what was allocated
            self._limit = len(piece) // 2
            torch.cuda.empty_cache()
            _LOG.warning("Out of memory with %d %s at a time; going on with %d.", len(piece), self.name, self._limit)
        return results
