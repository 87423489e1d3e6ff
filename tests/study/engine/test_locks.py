from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.locks import locked
from lightning_mllm.study.engine.main import run_study
from tests.study.conftest import Change, FakeLightning


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with locked(path, wait=False) as first, locked(path, wait=False) as second:
        assert first is not None
        assert second is None
    with locked(path, wait=True) as third:
        assert third is not None


def test_a_child_that_inherits_a_lock_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, wait=False) as lock:
        assert lock is not None
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,)
        )
    with child:
        with locked(path, wait=False) as other:
            assert other is None
        child.communicate(b"\n")
    with locked(path, wait=False) as free:
        assert free is not None


def test_a_folder_without_locks_is_named(
    study: Change, fake: FakeLightning, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.raises(ConfigError, match=r"No locks available.* option root"):
        run_study(study(), fake)

    assert not fake.calls


def test_a_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)

    with pytest.raises(ConfigError, match="Linux or macOS"), locked(tmp_path / "lock", wait=True):
        pass
