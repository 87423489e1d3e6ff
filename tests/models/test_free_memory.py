"""What a process may allocate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_mllm.models import free_memory as memory
from lightning_mllm.models.free_memory import free_memory


def test_what_a_job_may_use_is_the_least_that_its_groups_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, gib = torch.device("cpu"), 2**30
    for group, limit, used in (("", 64, 8), ("job", 9, 5), ("job/step", None, 5)):
        folder = tmp_path / group
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text("max\n" if limit is None else f"{limit * gib}\n")
        (folder / "memory.current").write_text(f"{used * gib}\n")
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUP", own)
    monkeypatch.setattr(memory, "_free_pages", lambda: 32 * gib)

    assert free_memory(device) == 4 * gib
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory(device) == 2 * gib
