"""How much memory this process can still have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_UNKNOWN = 4 * 2**30  # where the system does not say what is free
_LEAST = 2**30  # what the system caches counts as used, though it gives it back
_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


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
