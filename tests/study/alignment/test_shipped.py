"""The shipped studies of alignment, and a small one on the test-bed by the real command line."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.statistics.correlation import smallest_correlation_n
from lightning_mllm.study import AlignmentCommand, run_study
from lightning_mllm.study.alignment.cells import AlignmentCell
from lightning_mllm.testbed.training.checkpoints import ROOT
from tests.study.projection.test_shipped import parse
from tests.support.command_line import CONFIGS, isolate
from tests.support.shipped_configs import (
    ALIGNMENT_PARTS,
    ALIGNMENT_SERIES,
    ALIGNMENT_STEPS,
    ALIGNMENT_STUDIES,
    ALIGNMENT_STUDY,
    ALIGNMENT_TESTBED,
)

SERIES = ("--config", f"configs/{ALIGNMENT_SERIES}")
SMALL = {  # what is asked less of here
    "questions": {"per_kind": 2, "train_per_kind": 1, "val_per_kind": 1},
    "presence": {"per_kind": 6, "train_per_kind": 1, "val_per_kind": 1},
    "captions": {"test_scenes": 8},
}


def shipped(name: str, *more: str) -> AlignmentCommand:
    study = parse("--config", f"configs/{name}", *more)
    assert isinstance(study, AlignmentCommand)
    return study


def cells_of(name: str, *more: str) -> list[AlignmentCell]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CONFIGS.parent)
        study = shipped(name, *more)
        study.check()
        return study.all_cells()


def printed(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        ModelCLI([*arguments, "--print_config"])
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("name", ALIGNMENT_STUDIES)
def test_a_shipped_study_has_the_cells_that_its_comment_says(name: str) -> None:
    assert len(cells_of(name)) == ALIGNMENT_STUDIES[name]


def test_each_file_of_a_study_is_part_of_one() -> None:
    named = {file for name in ALIGNMENT_STUDIES for cell in cells_of(name) for file in cell.configs}

    assert {f"configs/{part}" for part in ALIGNMENT_PARTS} <= named


def test_the_study_of_hub_checkpoints_has_as_many_as_its_comment_says_are_needed() -> None:
    assert len(shipped_checkpoints(ALIGNMENT_STUDY)) == smallest_correlation_n(5)


def test_the_cells_of_the_test_bed_are_of_its_stages() -> None:
    assert shipped_checkpoints(ALIGNMENT_TESTBED) == {
        stage: str(ROOT / stage) for stage in ("before", "aligned", "instructed")
    }


def shipped_checkpoints(name: str) -> dict[str, str]:
    return {cell.checkpoint: cell.source for cell in cells_of(name)}


def test_the_series_adds_the_steps_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(CONFIGS)
    folder = Path("runs/alignment-steps/checkpoints")
    folder.mkdir(parents=True)
    for step in (50, 100):
        (folder / f"epoch=0-step={step}.ckpt").touch()

    study = shipped(ALIGNMENT_TESTBED, *SERIES)
    study.check()

    cells = {cell.checkpoint: cell for cell in study.all_cells()}
    assert list(cells) == ["before", "instructed", "steps-epoch0-step50", "steps-epoch0-step100"]
    last = cells["steps-epoch0-step100"]
    assert last.weights == (str(ROOT / "before"), str(folder / "epoch=0-step=100.ckpt"))
    assert last.configs.index("configs/policy/ft_proj.yaml") > last.configs.index(
        "configs/policy/zero_shot.yaml"
    )


def test_the_training_of_the_series_keeps_its_steps_where_the_study_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isolate(monkeypatch, CONFIGS.parent)
    config = printed(
        [
            "fit",
            "--config",
            "configs/testbed_training/4_aligned.yaml",
            "--config",
            f"configs/{ALIGNMENT_STEPS}",
        ],
        capsys,
    )

    assert config["checkpointing"]["save_top_k"] == -1
    steps = -(-config["data"]["init_args"]["scenes"] // config["data"]["init_args"]["batch_size"])
    assert (
        steps // config["checkpointing"]["every_n_train_steps"] == 15
    )  # as the study's comment says
    pattern = yaml.safe_load((CONFIGS / ALIGNMENT_SERIES).read_text())["checkpoints"]["steps"][
        "training"
    ]
    assert pattern == f"runs/{config['trainer']['run']['name']}/checkpoints/*step=*.ckpt"
    assert config["model"]["checkpoint"] == str(ROOT / "before")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIGNMENT_STUDIES)
def test_the_command_lines_of_a_shipped_study_parse(
    name: str, tiny_llava: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = {cell.measure: cell for cell in cells_of(name)}
    isolate(monkeypatch, CONFIGS.parent)
    for measure, cell in cells.items():
        config = printed([*cell.arguments(), "--model.checkpoint", tiny_llava], capsys)
        assert config["model"]["policy"]["class_path"].endswith("ZeroShot")
        callbacks = [
            each["class_path"].rpartition(".")[2] for each in config["trainer"]["callbacks"] or ()
        ]
        assert ("PopeReport" in callbacks) == (measure == "presence")
        assert measure != "captions" or "ChairReport" in callbacks
        assert ("analysis" in config) == (measure == "alignment")


@pytest.mark.slow
def test_a_study_of_two_stages_of_the_test_bed_runs_through_the_command_line_and_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    (tmp_path / "configs").symlink_to(CONFIGS)
    for name, fewer in SMALL.items():
        content = yaml.safe_load((CONFIGS / f"studies/alignment_testbed/{name}.yaml").read_text())
        content["data"]["init_args"].update(fewer)
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    study = yaml.safe_load((CONFIGS / ALIGNMENT_TESTBED).read_text())
    del study["checkpoints"]["aligned"]
    text = yaml.safe_dump(study)
    for name in SMALL:
        text = text.replace(f"configs/studies/alignment_testbed/{name}.yaml", f"{name}.yaml")
    Path("study.yaml").write_text(text)
    calls: list[Sequence[str]] = []

    def in_this_process(arguments: Sequence[str], log: Path, lock: int) -> None:
        calls.append(arguments)
        main(list(arguments))

    for _ in range(2):
        assert not run_study(parse("--config", "study.yaml", "--jobs", "1"), in_this_process)

    assert len(calls) == 2 * 4
    folder = Path("studies/alignment-testbed")
    with (folder / "scores.csv").open(newline="") as file:
        scores = {(row["checkpoint"], row["measure"]): row for row in csv.DictReader(file)}
    assert float(scores["instructed", "presence/accuracy"]["value"]) == 1
    assert float(scores["before", "presence/accuracy"]["value"]) < 1
    assert (
        scores["instructed", "captions/chair_s"]["n"]
        == scores["instructed", "alignment/ima_input avg"]["n"]
        == "8"
    )
    report = (folder / "report.md").read_text()
    assert "8 of 8 cells are finished" in report
    assert "N = 2 checkpoints are too few to say anything" in report
