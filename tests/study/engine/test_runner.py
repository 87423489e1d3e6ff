from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.study import ProjectionStudyRichness
from lightning_mllm.study.engine.cell_folder import CellState
from lightning_mllm.study.engine.main import run_study
from lightning_mllm.study.engine.runner import run_in_process, threads_per_run
from lightning_mllm.study.projection.cell_files import probes_in_cell_files
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
    assert all(folder.state is CellState.DONE for folder in folders_of(study()).values())


def test_a_failed_cell_is_reported_and_the_others_are_done(
    study: Change, fake: FakeLightning, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.breaks = {PROJ: "at once", E2E: "in training"}

    failures = run_study(study(jobs=3), fake)

    assert {failure.folder.cell.id for failure in failures} == {PROJ, E2E}
    assert f"exit code 3; its log ends with: the log of {PROJ}" in {
        failure.reason for failure in failures
    }
    states = {name: folder.state for name, folder in folders_of(study()).items()}
    assert (states.pop(PROJ), states.pop(E2E)) == (CellState.NEW, CellState.BEGUN)
    assert set(states.values()) == {CellState.DONE}
    assert "2 of 12 cells failed" in capsys.readouterr().out


def test_each_finished_cell_has_a_line_with_its_number_and_time(
    study: Change, fake: FakeLightning, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.breaks = {PROJ: "at once"}

    run_study(study(), fake)

    lines = re.findall(
        r"^\d+/12 · (\S+) · accuracy (?:0|1)\.\d\d.* · \d+ s$", capsys.readouterr().out, re.M
    )
    assert sorted(lines) == sorted({*folders_of(study())} - {PROJ})


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


def test_a_cell_without_what_the_study_reads_is_not_done_and_no_further_one_is_started(
    study: Change, fake: FakeLightning, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_probes(arguments: Sequence[str], log: Path, lock: int) -> None:
        fake(arguments, log, lock)
        for path in log.parent.rglob("probes.csv"):
            path.unlink()

    failures = run_study(study(richness=ProjectionStudyRichness()), without_probes)

    (failure,) = failures
    assert "probes.csv is missing" in failure.reason
    assert len(fake.calls) == 1
    assert "11 others were not started" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"scorer": "likelihood"}, {"richness": ProjectionStudyRichness(probe="mpl")}]
)
def test_a_misspelt_name_costs_one_cell(
    study: Change, fake: FakeLightning, changes: dict[str, Any]
) -> None:
    (failure,) = run_study(study(**changes), fake)

    assert "Set the" in failure.reason
    assert "option" in failure.reason
    assert len(fake.calls) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_a_cell_that_would_be_made_otherwise_now_is_refused(
    study: Change, fake: FakeLightning, broken: bool
) -> None:
    fake.breaks = {PROJ: "in training"} if broken else {}
    run_study(study(domains={"leaves": ["leaves.yaml"]}, seeds=[0]), fake)
    Path("proj.yaml").write_text("model:\n  learning_rates:\n    projector: 2.0e-3\n")

    with pytest.raises(
        ConfigError, match=rf"1 of 12 cells .* {PROJ}, where this has changed: proj\.yaml"
    ):
        run_study(study(), again := FakeLightning())
    with pytest.raises(ConfigError, match=r"3 of 12 cells .* the checkpoint"):
        run_study(study(checkpoints={"tiny": "other"}), again)

    assert not again.calls


def test_comments_and_the_place_of_the_study_make_no_cell_invalid(
    study: Change, fake: FakeLightning
) -> None:
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


def test_the_checkpoints_of_finished_cells_go_if_they_are_not_to_stay(
    study: Change, fake: FakeLightning
) -> None:
    fake.breaks = {E2E: "in training"}
    run_study(study(), fake)

    run_study(study(keep_checkpoints=False), FakeLightning())

    assert not list(Path().rglob("last.ckpt"))


def test_a_config_that_is_edited_while_the_study_runs_spoils_the_cells_that_read_it(
    study: Change, fake: FakeLightning
) -> None:
    def editing(arguments: Sequence[str], log: Path, lock: int) -> None:
        fake(arguments, log, lock)
        Path("proj.yaml").write_text("model:\n  learning_rates:\n    projector: 2.0e-3\n")

    failures = run_study(study(), editing)

    assert len(fake.calls) == 8  # zero-shot and FT-E2E; what is not begun yet is not begun
    assert {failure.folder.cell.policy for failure in failures} == {"ft_proj"}
    assert all("proj.yaml changed while the study ran" in failure.reason for failure in failures)
    assert not run_study(
        study(), FakeLightning()
    )  # all that is done agrees with the files as they are


def test_a_failed_cell_is_tried_again_with_a_repaired_config_and_its_earlier_run_is_left_out(
    study: Change, fake: FakeLightning
) -> None:
    fake.breaks = {PROJ: "at once"}
    made = study(richness=ProjectionStudyRichness(), domains={"leaves": ["leaves.yaml"]}, seeds=[0])
    run_study(made, fake)
    first = folders_of(made)[PROJ].path / PROJ
    (first / "probes.csv").write_text(
        "epoch,step,stage,point,probe,seed,accuracy,macro_f1,n_test\n9,9,val,a,b,0,1,1,1\n"
    )
    Path("proj.yaml").write_text("model:\n  learning_rates:\n    projector: 2.0e-3\n")

    assert not run_study(made, FakeLightning())

    folder = folders_of(made)[PROJ]
    assert [run.name for run in folder.runs()] == [f"{PROJ}-2"]
    assert {row["epoch"] for row in probes_in_cell_files(folder)} == {"-1", "0"}
    assert first.is_dir()


def test_failures_are_told_even_if_the_report_cannot_be_written(
    study: Change, fake: FakeLightning, capsys: pytest.CaptureFixture[str]
) -> None:
    run_study(study(seeds=[0]), fake)
    broken = next(folders_of(study())[PROJ].path.rglob("scores.json"))
    broken.write_text('{"scorers": {')
    failing = FakeLightning()
    failing.breaks = {E2E: "at once"}

    with pytest.raises(DataError, match=rf"{PROJ}.*scores\.json can't be read as JSON"):
        run_study(study(), failing)

    assert f"{E2E} failed" in capsys.readouterr().out


def test_a_cell_has_its_lock_to_hand_on(study: Change, fake: FakeLightning) -> None:
    def looking(arguments: Sequence[str], log: Path, lock: int) -> None:
        fake(arguments, log, lock)
        assert os.path.samestat(os.fstat(lock), (log.parent / "lock").stat())

    assert not run_study(study(seeds=[0]), looking)


def test_jobs_share_the_threads_that_the_study_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")

    assert [threads_per_run(jobs) for jobs in (1, 2, 4, 9)] == [None, 3, 1, 1]


@pytest.mark.slow
def test_a_process_of_its_own_logs_to_the_cell_and_tells_of_its_failure(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"

    with pytest.raises(subprocess.CalledProcessError), log.open("a") as lock:
        run_in_process(
            ["fit", "--config", str(tmp_path / "missing.yaml")], log, lock.fileno(), threads=1
        )

    assert "missing.yaml" in log.read_text()
