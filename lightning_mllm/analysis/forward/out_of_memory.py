"""How much memory there is, and how to continue with less at a time when it runs out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

_UNKNOWN = 4 * 2**30  # where the system does not say what is free
_LEAST = 2**30  # what the system caches counts as used, though it gives it back
_PATIENCE = 16  # pieces that fit before more at a time is tried again
_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_T = TypeVar("_T")
_Thing = TypeVar("_Thing")


def free_memory(device: torch.device) -> int:
    """Return about how much this process can still allocate.

    On the CPU this is what the system has free and a job scheduler or container allows, divided
    among the processes of one training. At least a GiB is assumed.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    return max(_LEAST, min([_free_pages(), *_free_in_groups()]) // processes)


class MemoryPieces:
    """Runs things some at a time; out of memory, it continues with half as many.

    After a while it tries more again.

    Attributes:
        name: What the things are called in the log.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._limit: int | None = None  # in weights
        self._patience, self._fitted = _PATIENCE, 0

    def run(
        self,
        things: Sequence[_Thing],
        size: int,
        function: Callable[[Sequence[_Thing]], _T],
        *,
        weight: int = 1,
        halve: bool = True,
    ) -> list[_T]:
        """Return function(piece) for consecutive pieces of `size` or fewer things.

        Args:
            things: What is run.
            size: How many are run at a time, if memory allows.
            function: Runs a piece.
            weight: How much memory a thing takes, in any unit; things of another call may take more
                or less.
            halve: Whether a piece that does not fit is run in halves; otherwise the error goes to
                the caller.

        Raises:
            torch.OutOfMemoryError: One thing alone does not fit, or `halve` is False.
        """
        results: list[_T] = []
        start = 0
        while start < len(things):
            fitting = size if self._limit is None else max(1, self._limit // weight)
            piece = things[start : start + min(size, fitting)]
            try:
                results.append(function(piece))
                start += len(piece)
                self._note_that_it_fits()
                continue
            except torch.OutOfMemoryError:
                if len(piece) == 1 or not halve:
                    raise
            # here and not above, where the error would keep alive what was allocated
            self._limit, self._fitted = len(piece) // 2 * weight, 0
            self._patience *= 2
            torch.cuda.empty_cache()
            logger.warning(
                "Out of memory with %d %s at a time; going on with %d.",
                len(piece),
                self.name,
                len(piece) // 2,
            )
        return results

    def _note_that_it_fits(self) -> None:
        self._fitted += 1
        if self._limit is not None and self._fitted >= self._patience:
            self._limit, self._fitted = 2 * self._limit, 0


def _free_pages() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows, not on macOS
        return _UNKNOWN


def _free_in_groups() -> Iterator[int]:
    """Yield what is left in each of the process's control groups (version 2) that has a limit."""
    try:
        own = _OWN_GROUP.read_text(encoding="utf-8").rpartition("::")[2].strip().lstrip("/")
    except OSError:  # not on Linux
        return
    for group in (_GROUPS / own, *(_GROUPS / own).parents):
        try:
            yield int((group / "memory.max").read_text()) - int(
                (group / "memory.current").read_text()
            )
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
