from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.study import Richness
from lightning_mllm.study.command import duration, run_study
from lightning_mllm.study.marker import State
from lightning_mllm.study.runner import in_a_process
from tests.study.conftest import Change, FakeLightning, folders_of, option

PROJ, E2E = "tiny.leaves.paper.ft_proj.seed0", "tiny.plantdoc.paper.ft_e2e.seed1"


def test_what_is_finished_is_not_run_again(study: Change, fake: FakeLightning) -> None:
    assert not run_study(study(), fake)
    assert sorted(fake.cells) == sorted(folders_of(study()))

    run_study(study(), again := FakeLightning())

    assert not again.calls


def test_shares_add_up_to_the_study(study: Change, fake: FakeLightning) -> None:
    for part in (1, 2, 3):
        run_study(study(cells=f"{part}/3"), fake)

    assert sorted(fake.cells) == sorted(folders_of(study()))
    assert all(folder.state is State.DONE for folder in folders_of(study()).values())


def test_a_failed_cell_is_reported_and_the_others_are_done(
    study: Change, fake: FakeLightning, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.breaks = {PROJ: "at once", E2E: "in training"}

    failures = run_study(study(jobs=3), fake)

    assert {failure.folder.cell.id for failure in failures} == {PROJ, E2E}
    assert f"exit code 3; its log ends with: the log of {PROJ}" in {failure.reason for failure in failures}
    states = {name: folder.state for name, folder in folders_of(study()).items()}
    assert (states.pop(PROJ), states.pop(E2E)) == (State.NEW, State.BEGUN)
    assert set(states.values()) == {State.DONE}
    assert "2 of 12 cells failed" in capsys.readouterr().out


def test_the_next_call_completes_only_what_is_missing_from_its_last_checkpoint(
    study: Change, fake: FakeLightning
) -> None:
    fake.breaks = {PROJ: "at once", E2E: "in training"}
    run_study(study(), fake)

    again = FakeLightning()
    assert not run_study(study(), again)

    assert sorted(again.cells) == [PROJ, E2E]
    resumed = dict(zip(again.cells, again.calls, strict=True))
    checkpoint = f"studies/small/cells/{E2E}/{E2E}/checkpoints/last.ckpt"
    assert option(resumed[E2E], "--ckpt_path") == checkpoint
    assert option(resumed[PROJ], "--ckpt_path") is None
    folder = folders_of(study())[E2E]
    assert [run.name for run in folder.runs()] == [E2E, f"{E2E}-2"]
    assert folder.seconds() is None  # the rest of a training says nothing about a whole one


def test_a_cell_without_what_the_study_reads_is_not_done(study: Change, fake: FakeLightning) -> None:
    def without_probes(arguments: Sequence[str], log: Path) -> None:
        fake(arguments, log)
        for path in log.parent.rglob("probes.csv"):
            path.unlink()

    failures = run_study(study(richness=Richness()), without_probes)

    assert len(failures) == 12
    assert "probes.csv is missing" in failures[0].reason


@pytest.mark.parametrize("broken", [False, True])
def test_a_cell_that_would_be_made_otherwise_now_is_refused(study: Change, fake: FakeLightning, broken: bool) -> None:
    fake.breaks = {PROJ: "in training"} if broken else {}
    run_study(study(domains={"leaves": ["leaves.yaml"]}, seeds=[0]), fake)
    Path("proj.yaml").write_text("model:\n  learning_rates:\n    projector: 2.0e-3\n")

    with pytest.raises(ConfigError, match=rf"1 of 12 cells .* {PROJ}, where this has changed: proj\.yaml"):
        run_study(study(), again := FakeLightning())
    with pytest.raises(ConfigError, match=r"3 of 12 cells .* the arguments"):
        run_study(study(checkpoints={"tiny": "other"}), again)

    assert not again.calls


def test_comments_and_the_place_of_the_study_make_no_cell_invalid(study: Change, fake: FakeLightning) -> None:
    run_study(study(), fake)
    Path("common.yaml").write_text("# another comment\nx:   1\n")
    shutil.move("studies", "elsewhere")

    run_study(study(root="elsewhere", jobs=2, wandb="disabled"), again := FakeLightning())

    assert not again.calls


def test_a_cell_that_another_process_runs_is_left_to_it(study: Change, fake: FakeLightning) -> None:
    folder = folders_of(study())[PROJ]
    folder.path.mkdir(parents=True)
    with (folder.path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not run_study(study(), fake)

    assert PROJ not in fake.cells
    assert len(fake.cells) == 11


def test_the_checkpoints_of_finished_cells_go_if_they_are_not_to_stay(study: Change, fake: FakeLightning) -> None:
    fake.breaks = {E2E: "in training"}
    run_study(study(), fake)

    run_study(study(keep_checkpoints=False), FakeLightning())

    assert not list(Path().rglob("last.ckpt"))


def test_a_dry_run_shows_the_plan_and_nothing_else(
    study: Change, fake: FakeLightning, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(study(dry_run=True), fake)
    assert not fake.calls
    assert not Path("studies").exists()
    assert "12 to do. Time: unknown until the first are done" in " ".join(capsys.readouterr().out.split())

    fake.breaks = {E2E: "in training"}
    run_study(study(), fake)
    capsys.readouterr()
    run_study(study(dry_run=True), fake)
    shown = " ".join(capsys.readouterr().out.split())
    assert "11 done, 1 to resume. Time: 0 s for the cells whose time is known" in shown


def test_durations_read_like_durations() -> None:
    assert [duration(s) for s in (12.4, 90, 3599, 7500)] == ["12 s", "2 min", "1 h 00 min", "2 h 05 min"]


@pytest.mark.slow
def test_a_process_of_its_own_logs_to_the_cell_and_tells_of_its_failure(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    with pytest.raises(subprocess.CalledProcessError):
        in_a_process(["fit", "--config", str(tmp_path / "missing.yaml")], log, threads=1)

    assert "missing.yaml" in log.read_text()
