"""What the processes of a run do together; here they are threads."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from lightning_mllm.analysis import Analysis
from lightning_mllm.errors import ConfigError
from lightning_mllm.tracking import analysis_run
from lightning_mllm.tracking.analysis_run import AnalysisRun

TIMEOUT = 20  # seconds; for what would wait for ever


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis_run, "_PAUSE", 0.01)
    monkeypatch.setattr(analysis_run, "_report", lambda *_: None)


def make_runs(
    folder: Path | None,
    analysis: Analysis,
    world_size: int = 2,
    barrier: Callable[[], Any] | None = None,
) -> list[AnalysisRun]:
    together = barrier or Barrier(world_size, timeout=TIMEOUT).wait
    return [
        AnalysisRun([analysis], folder, rank, world_size, together) for rank in range(world_size)
    ]


def an_analysis(**methods: Any) -> Any:
    analysis = MagicMock(spec=Analysis, **methods)
    analysis.name = "some"
    return analysis


def finish(run: AnalysisRun) -> list[Any]:
    return run.finish((), "analysis", 0)


def test_several_processes_without_a_folder_would_each_have_only_a_part() -> None:
    with pytest.raises(ConfigError, match=r"2 processes collect what they find .* use one device"):
        AnalysisRun((), None, rank=0, world_size=2, barrier=lambda: None)


def test_one_process_needs_no_folder() -> None:
    run = AnalysisRun((), None, rank=0, world_size=1, barrier=lambda: None)

    assert finish(run) == []


def test_nobody_waits_at_the_barrier_for_one_that_is_not_done(tmp_path: Path) -> None:
    at_barrier = Event()
    meet = Barrier(2, timeout=TIMEOUT)

    def barrier() -> None:
        at_barrier.set()
        meet.wait()

    fast, slow = make_runs(tmp_path, an_analysis(), barrier=barrier)
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(finish, fast)
        while not (list(tmp_path.iterdir()) or waits.done()):
            pass
        early = at_barrier.wait(0.1)
        ends = pool.submit(finish, slow)

        assert not early
        assert (len(waits.result(TIMEOUT)), ends.result(TIMEOUT)) == (1, [])
    assert not list(tmp_path.iterdir())


def test_markers_of_a_run_that_was_killed_are_nobodys(tmp_path: Path) -> None:
    for rank in range(3):
        (tmp_path / f"process-{rank}.done").touch()
        (tmp_path / f"process-{rank}.failed").touch()
    runs = make_runs(tmp_path, an_analysis())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: run.begin(MagicMock(), {}), runs, timeout=TIMEOUT))

    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_on_the_first_process_leaves_nobody_waiting(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, an_analysis(**{"compute.side_effect": ValueError("no numbers")}))

    with ThreadPoolExecutor(2) as pool:
        first, other = (pool.submit(finish, run) for run in runs)

        assert other.result(TIMEOUT) == []
        with pytest.raises(ValueError, match="no numbers"):
            first.result(TIMEOUT)


def test_a_process_whose_run_has_ended_does_not_wait_for_it(tmp_path: Path) -> None:
    run = AnalysisRun(
        (), tmp_path, rank=1, world_size=2, barrier=lambda: None, parent=os.getpid()
    )  # not its own

    with pytest.raises(RuntimeError, match="process that started this one has ended"):
        finish(run)


def test_a_process_that_fails_is_not_waited_for_and_named(tmp_path: Path) -> None:
    first, second, third = make_runs(tmp_path, an_analysis(), world_size=3)

    second.fail()

    for run in (first, third):
        with pytest.raises(
            RuntimeError, match=rf"Process 1 of 3 .* so process {run.rank} waits no longer"
        ):
            finish(run)
        run.fail()  # as what ends it is an exception too
    assert sorted(path.name for path in tmp_path.glob("*.failed")) == ["process-1.failed"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_only_a_process_with_others_and_a_folder_says_that_it_fails(
    world_size: int, tmp_path: Path
) -> None:
    AnalysisRun((), None, rank=0, world_size=1, barrier=lambda: None).fail()
    AnalysisRun((), tmp_path / "new", rank=0, world_size=world_size, barrier=lambda: None).fail()

    assert len(list(tmp_path.glob("new/process-0.failed"))) == world_size - 1


def test_which_processes_are_waited_for_is_said_at_once_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(analysis_run, "_PATIENCE", 0.1)
    run, *_, last = make_runs(tmp_path, an_analysis(), world_size=4)
    (tmp_path / "process-1.done").touch()

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(1) as pool:
        waits = pool.submit(finish, run)
        while len(caplog.records) < 3 and not waits.done():
            pass
        last.fail()

        with pytest.raises(RuntimeError, match="Process 3 of 4"):
            waits.result(TIMEOUT)

    assert {record.getMessage() for record in caplog.records} == {
        "Process 0 of 4 is done and waits for 2, 3"
    }
    assert [record.levelname for record in caplog.records[:3]] == ["INFO", "WARNING", "WARNING"]
    apart = caplog.records[2].created - caplog.records[0].created
    assert apart > 0.1


@pytest.mark.parametrize(("local_rank", "parent"), [(0, None), (1, os.getppid())])
def test_only_what_a_process_has_started_watches_it(
    local_rank: int, parent: int | None, tmp_path: Path
) -> None:
    trainer = SimpleNamespace(
        default_root_dir=str(tmp_path),
        loggers=[object()],
        global_rank=5,
        local_rank=local_rank,
        world_size=8,
        fast_dev_run=False,
        strategy=SimpleNamespace(barrier=print),
    )

    run = AnalysisRun.of((), trainer, "analysis/test-step3")

    assert run == AnalysisRun((), tmp_path / "analysis/test-step3", 5, 8, print, parent)


def test_analyses_of_a_run_share_the_answers(tmp_path: Path) -> None:
    both = an_analysis(), an_analysis()

    AnalysisRun(both, tmp_path, 0, 1, lambda: None).begin(MagicMock(), {"data": "some"})

    first, second = (analysis.prepare.call_args.args for analysis in both)
    assert first[-1] is second[-1]
    assert first[2] == {"data": "some"}
