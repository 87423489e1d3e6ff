"""A study of alignment with a command line that only writes what runs leave behind."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.errors import ConfigError
from lightning_mllm.study import AlignmentCommand, AlignmentStudyCheckpoint, run_study
from lightning_mllm.study.alignment.claims import AGAINST_HALLUCINATION, WITH_ACCURACY
from lightning_mllm.study.engine.cell_folder import CellFolder, CellState
from tests.study.conftest import option
from tests.support.alignment_cells import READINGS, FakeMeasurements

Change = Callable[..., AlignmentCommand]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """A function from changes to a study of seven checkpoints, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("common", "vqa", "presence", "captions", "alignment"):
        Path(f"{name}.yaml").write_text(f"x: {name}\n")
    made = AlignmentCommand(
        name="small",
        checkpoints={f"c{k}": f"hub/c{k}" for k in range(1, 8)},
        common=["common.yaml"],
        tasks={"vqa": ["vqa.yaml"]},
        presence=["presence.yaml"],
        captions=["captions.yaml"],
        alignment=["alignment.yaml"],
        readings=[READINGS[0]],
    )
    return lambda **changes: replace(made, **changes)


def rows_of(name: str) -> list[dict[str, str]]:
    with Path("studies/small", name).open(newline="") as file:
        return list(csv.DictReader(file))


def report() -> str:
    return Path("studies/small/report.md").read_text()


def test_every_checkpoint_is_measured_once_with_the_configs_of_the_measure(study: Change) -> None:
    made = study(
        checkpoints={
            "c1": "hub/c1",
            "c2": AlignmentStudyCheckpoint(source="hub/c2", configs=["vqa.yaml"]),
        }
    )

    runs, again = FakeMeasurements(), FakeMeasurements()

    failures = [*run_study(made, runs), *run_study(made, again)]

    assert not failures
    assert not again.calls
    commands = {"task.vqa": "test", "presence": "test", "captions": "test", "alignment": "analyze"}
    assert [(call[0], option(call, "--trainer.run.name")) for call in runs.calls] == [
        (command, f"{checkpoint}.{measure}")
        for checkpoint in ("c1", "c2")
        for measure, command in commands.items()
    ]
    configs = [[b for a, b in pairwise(call) if a == "--config"] for call in runs.calls]
    assert configs[1] == ["common.yaml", "presence.yaml"]
    assert configs[5] == ["common.yaml", "vqa.yaml", "presence.yaml"]
    assert option(runs.calls[5], "--model.checkpoint") == "hub/c2"
    assert option(runs.calls[5], "--ckpt_path") is None


def test_numbers_correlations_and_verdicts_are_written(study: Change) -> None:
    assert not run_study(study(readings=[*READINGS]), FakeMeasurements())

    scores = {(row["checkpoint"], row["measure"]): row for row in rows_of("scores.csv")}
    assert scores["c3", "task/vqa/accuracy"]["value"] == "0.36"
    assert scores["c3", "presence/random/f1"]["n"] == "96"
    assert float(scores["c3", "captions/chair_i"]["value"]) == pytest.approx(0.64)
    score = scores["c3", "alignment/ima_input avg"]
    assert (score["value"], score["n"]) == ("0.03", "32")

    found = {(row["score"], row["measure"]): row for row in rows_of("correlations.csv")}
    assert len(found) == 2 * (1 + 3 + 3 + 3)  # presence in all and of one way of drawing
    assert float(found[READINGS[0], "presence/random/yes_rate"]["spearman_value"]) == pytest.approx(
        1
    )
    assert "## POPE by how absent objects were drawn" in report()
    assert "origins" not in report()
    chair = found["ima_same_layer avg", "captions/chair_s"]
    assert float(chair["spearman_value"]) == pytest.approx(-1)
    assert float(chair["spearman_p"]) == pytest.approx(2 / 5040)
    assert (chair["spearman_n"], chair["pearson_n"]) == ("7", "7")

    verdicts = {(row["score"], row["claim"], row["part"]): row for row in rows_of("verdict.csv")}
    for claim in (WITH_ACCURACY, AGAINST_HALLUCINATION):
        assert verdicts["ima_input avg", claim, ""]["verdict"] == "holds"
    part = verdicts["ima_input avg", AGAINST_HALLUCINATION, "captions/chair_i"]
    assert float(part["p_holm"]) == pytest.approx(5 * 2 / 5040)
    assert "too few" not in report()
    assert "28 of 28 cells are finished" in report()
    figures = ("score-ima_input-avg", "score-ima_same_layer-avg", "layers")
    assert {path.name for path in Path("studies/small/figures").iterdir()} == {
        f"{name}.{kind}" for name in figures for kind in ("png", "csv")
    }
    layers = rows_of("figures/layers.csv")
    assert [
        row["value"] for row in layers if (row["score"], row["checkpoint"]) == (READINGS[0], "c2")
    ] == ["0.02"] * 3


def test_too_few_checkpoints_are_said_to_be_too_few_and_from_how_many_on_it_is_enough(
    study: Change,
) -> None:
    run_study(study(checkpoints={f"c{k}": f"hub/c{k}" for k in (1, 2, 3)}), FakeMeasurements())

    assert "**N = 3 checkpoints are too few to say anything:" in report()
    assert "the p-value would be 0.33 (2 of N! orders)" in report()
    assert "with 5 measures tested it must be 0.01 or less" in report()
    assert "From N = 6 on something can be said" in report()
    assert {row["spearman_low_95"] for row in rows_of("correlations.csv")} == {""}


def test_measures_that_do_not_vary_decide_nothing(study: Change) -> None:
    run_study(study(), FakeMeasurements(flat=True))

    assert {row["spearman_value"] for row in rows_of("correlations.csv")} == {""}


def test_the_other_sign_refutes_a_claim(study: Change) -> None:
    upside_down = {f"c{k}": f"hub/c{k}" for k in range(1, 8)}

    class Contrary(FakeMeasurements):
        def _write_alignment(self, folder: Path, level: int) -> None:
            super()._write_alignment(folder, 10 - level)

    run_study(study(checkpoints=upside_down), Contrary())

    assert {row["verdict"] for row in rows_of("verdict.csv")} == {"does not"}


def test_only_what_is_measured_is_judged(study: Change) -> None:
    made = study(presence=[], captions=[], tasks={"vqa": ["vqa.yaml"], "classes": ["vqa.yaml"]})

    assert not run_study(made, FakeMeasurements())

    assert {(row["claim"], row["part"]) for row in rows_of("verdict.csv")} == {
        (WITH_ACCURACY, part) for part in ("", "task/vqa/accuracy", "task/classes/accuracy")
    }


def test_what_is_not_measured_yet_is_undecided_and_counts_as_tested(study: Change) -> None:
    class Stopped(FakeMeasurements):
        def __call__(self, arguments: Sequence[str], log: Path, lock: int) -> None:
            if ".captions" in str(option(arguments, "--trainer.run.name")):
                raise subprocess.CalledProcessError(1, "lightning")
            super().__call__(arguments, log, lock)

    run_study(study(), Stopped())

    verdicts = {row["part"]: row for row in rows_of("verdict.csv")}
    assert (
        verdicts["captions/chair_i"]["verdict"],
        verdicts["captions/chair_i"]["checkpoints"],
    ) == ("undecided", "0")
    assert verdicts["presence/f1"]["verdict"] == "holds"
    assert float(verdicts["presence/f1"]["p_holm"]) == pytest.approx(5 * 2 / 5040)
    assert "- c1.captions: to do" in report()


def test_an_analysis_that_was_stopped_goes_on_from_its_rows_unless_it_would_be_another(
    study: Change,
) -> None:
    made = study(checkpoints={"c1": "hub/c1"})
    *others, analysis = (
        CellFolder(cell, made.folder / "cells" / cell.id) for cell in made.all_cells()
    )
    runs = [str(analysis.path / f"{analysis.cell.id}{number}") for number in ("", "-3")]

    class Killed(FakeMeasurements):
        def _write_alignment(self, folder: Path, level: int) -> None:
            folder.mkdir(parents=True)
            (folder / "making.json").write_text("{}")
            raise subprocess.CalledProcessError(137, "lightning")

    resumed: list[str | None] = []
    for content in ("x: alignment", "x: alignment  # the same", "x: another", "x: another"):
        Path("alignment.yaml").write_text(content)
        run_study(made, killed := Killed())
        resumed.append(option(killed.calls[-1], "--resume"))

    assert resumed == [None, runs[0], None, runs[1]]
    assert [folder.state for folder in (*others, analysis)] == [
        *[CellState.DONE] * 3,
        CellState.BEGUN,
    ]


def test_steps_of_one_training_decide_nothing_however_well_they_are_ordered(study: Change) -> None:
    folder = Path("runs/fit/checkpoints")
    folder.mkdir(parents=True)
    for step in range(1, 8):
        (folder / f"step={step}.ckpt").write_bytes(b"weights" * step)

    assert not run_study(
        study(
            checkpoints={"fit": AlignmentStudyCheckpoint(source="a", training=f"{folder}/*.ckpt")}
        ),
        FakeMeasurements(),
    )

    assert {(row["verdict"], row["checkpoints"]) for row in rows_of("verdict.csv")} == {
        ("undecided", "7")
    }
    assert all(abs(float(row["spearman"])) > 0.999 for row in rows_of("verdict.csv") if row["part"])
    assert "they need as many origins as they would need independent checkpoints." in report()


def test_the_checkpoints_of_a_training_are_checkpoints_of_the_study_in_their_order(
    study: Change,
) -> None:
    folder = Path("runs/fit/checkpoints")
    folder.mkdir(parents=True)
    for step in (100, 50, 9):
        (folder / f"epoch=0-step={step}.ckpt").write_bytes(b"weights" * step)
    (folder / "last.ckpt").touch()
    training = AlignmentStudyCheckpoint(
        source="hub/c1", training=f"{folder}/*step=*.ckpt", configs=["vqa.yaml"]
    )
    made = study(checkpoints={"c1": "hub/c1", "fit": training})

    names = list(dict.fromkeys(cell.checkpoint for cell in made.all_cells()))
    assert names == ["c1", "fit-epoch0-step9", "fit-epoch0-step50", "fit-epoch0-step100"]
    runs = FakeMeasurements()
    assert not run_study(made, runs)
    copied = (
        folder.parent.rename("runs/elsewhere") / "checkpoints"
    )  # only where they are has changed
    with pytest.raises(ConfigError, match=r"last\.ckpt together with others.*\*step=\*\.ckpt"):
        study(checkpoints={"fit": replace(training, training=f"{copied}/*.ckpt")}).all_cells()
    moved = replace(training, training=f"{copied}/*step=*.ckpt")
    assert not run_study(
        study(checkpoints={"c1": "hub/c1", "fit": moved}), again := FakeMeasurements()
    )
    assert not again.calls
    copied.parent.rename(folder.parent)
    assert (
        "4 of the 4 checkpoints share a training, or what it began from, with others (c1: 4)"
        in report()
    )
    assert "4 checkpoints are of 1 origin." in report()
    assert {(row["checkpoints"], row["origins"]) for row in rows_of("verdict.csv")} == {("4", "1")}
    assert {(row["spearman_n"], row["origins"]) for row in rows_of("correlations.csv")} == {
        ("4", "1")
    }
    path = option(runs.calls[4], "--ckpt_path")
    assert (path, option(runs.calls[4], "--model.checkpoint")) == (
        f"{folder}/epoch=0-step=9.ckpt",
        "hub/c1",
    )

    (folder / "epoch=0-step=50.ckpt").write_bytes(b"others.")
    with pytest.raises(
        ConfigError, match=r"4 of 16 cells .* fit-epoch0-step50\.task\.vqa.*the checkpoint"
    ):
        run_study(made, FakeMeasurements())


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pope.json", "the callback PopeReport"),
        ("chair.json", "the callback ChairReport"),
        ("scores.json", "scores.json is missing"),
    ],
)
def test_a_cell_without_what_the_study_reads_is_not_done(
    study: Change, file: str, message: str
) -> None:
    (failure,) = run_study(study(), FakeMeasurements(without=file))

    assert message in failure.reason
    assert failure.concerns_all


@pytest.mark.parametrize(
    "changes",
    [{"readings": ["ima_input max"]}, {"tokens": "without sinks"}],
)
def test_a_reading_that_was_not_measured_costs_one_cell(
    study: Change, changes: dict[str, Any]
) -> None:
    (failure,) = run_study(study(**changes), FakeMeasurements())

    assert "Set the study's options readings and tokens" in failure.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tasks": {}, "presence": [], "captions": []},
            r"with something.* there are some for alignment",
        ),
        ({"readings": ["ima_inpt avg"]}, r"ima_input or ima_same_layer, then one of avg, mean"),
        ({"readings": ["ima_input avrg"]}, r"then one of avg, mean, median, max, min, max_mean"),
        ({"tokens": "no sinks"}, r"tokens is 'no sinks', not 'all' or 'without sinks'"),
        ({"alignment": []}, r"there are some for task\.vqa, presence, captions"),
        ({"presence": ["missing.yaml"]}, r"presence names the config file missing\.yaml"),
        ({"checkpoints": {}}, r"checkpoints is empty"),
        ({"checkpoints": {"a.b": "x"}}, r"checkpoints has the name 'a\.b'"),
        ({"tasks": {"a/b": ["vqa.yaml"]}}, r"tasks has the name 'a/b'"),
        (
            {"checkpoints": {"a": AlignmentStudyCheckpoint(source="x", configs=["no"])}},
            r"checkpoints\.a\.configs names the config",
        ),
        (
            {"checkpoints": {"a": AlignmentStudyCheckpoint(source="x", training="runs/*.ckpt")}},
            r"runs/\*\.ckpt, which no file",
        ),
        ({"readings": []}, r"readings is \[\]\. Name one alignment score or more"),
        ({"readings": [READINGS[0]] * 2}, r"each once"),
        ({"checkpoints": {"a": "x", "b": "x"}}, r"checkpoints has x twice, as 'a' and as 'b'"),
        ({"resamples": 10}, r"resamples is 10"),
        ({"jobs": 0}, r"--jobs is 0"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_runs(
    study: Change, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_study(study(**changes), runs := FakeMeasurements())

    assert not runs.calls
