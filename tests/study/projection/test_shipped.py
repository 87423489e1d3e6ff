"""The shipped studies, and one small study through the real command line."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.cli.commands import study as command
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.study import RunnableStudy
from lightning_mllm.study.engine.main import run_study
from lightning_mllm.study.engine.runner import RunnerFailure
from lightning_mllm.study.projection.cells import ProjectionCell, projection_cells
from lightning_mllm.testbed.training.checkpoints import ROOT
from tests.conftest import ClipBuilder
from tests.support.command_line import CONFIGS, isolate
from tests.support.shipped_configs import (
    PROJECTION_PARTS,
    PROJECTION_STUDIES,
    PROJECTION_STUDY,
    PROJECTION_TESTBED,
)


def parse(*arguments: str) -> Any:
    """Return the study that the command line would run."""
    parsed: list[RunnableStudy] = []

    def keep(study: RunnableStudy) -> list[RunnerFailure]:
        parsed.append(study)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "run_study", keep)
        main(["study", *arguments])
    return parsed[0]


def test_each_file_of_a_study_is_part_of_one() -> None:
    named = {file for name in PROJECTION_STUDIES for cell in shipped(name) for file in cell.configs}

    assert {f"configs/{part}" for part in PROJECTION_PARTS} <= named


def shipped(name: str) -> list[ProjectionCell]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(CONFIGS.parent)
        study = parse("--config", f"configs/{name}")
        study.check()
        return projection_cells(study)


@pytest.mark.parametrize("name", PROJECTION_STUDIES)
def test_a_shipped_study_has_the_grid_that_its_comment_says(name: str) -> None:
    assert len(shipped(name)) == PROJECTION_STUDIES[name]


@pytest.mark.parametrize("name", PROJECTION_STUDIES)
def test_the_cells_of_a_shipped_study_get_what_its_interpolations_stand_for(name: str) -> None:
    assert not [
        argument for cell in shipped(name) for argument in cell.arguments() if "${" in argument
    ]


def test_the_cells_of_the_test_bed_start_from_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {cell.source for cell in shipped(PROJECTION_TESTBED)} == {str(ROOT / "instructed")}
    monkeypatch.chdir(CONFIGS.parent)
    other = parse(
        "--config",
        f"configs/{PROJECTION_TESTBED}",
        "--checkpoints",
        "{testbed: '${testbed:aligned}'}",
    )
    assert other.checkpoints == {"testbed": str(ROOT / "aligned")}
    assert (other.jobs, other.dry_run) == (2, False)


def test_a_dry_run_is_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)

    assert parse("--config", f"configs/{PROJECTION_STUDY}", "--dry-run", "--cells", "3/8").dry_run


@pytest.mark.slow
@pytest.mark.parametrize("name", PROJECTION_STUDIES)
def test_the_command_lines_of_a_shipped_study_parse(
    name: str, tiny_llava: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell for cell in shipped(name) if cell.seed == 0]
    kinds = {(cell.policy, cell.preset): cell for cell in cells} | {
        cell.domain: cell for cell in cells
    }
    isolate(monkeypatch, CONFIGS.parent)
    for cell in kinds.values():
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            ModelCLI([*cell.arguments(), "--model.checkpoint", tiny_llava, "--print_config"])
        assert ended.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["data"]["init_args"]["prompt"]["init_args"]["seed"] == 0
        policy = {"zero_shot": "ZeroShot", "ft_proj": "ProjectorOnly", "ft_e2e": "ProjectorAndLLM"}[
            cell.policy
        ]
        assert config["model"]["policy"]["class_path"].endswith(policy)
        callbacks = [
            each["class_path"].rpartition(".")[2] for each in config["trainer"]["callbacks"]
        ]
        assert "ProbeEachEpoch" in callbacks
        with_clip = (cell.policy, name) == ("zero_shot", PROJECTION_STUDY)
        assert callbacks.count("ClipZeroShot") == with_clip


@pytest.mark.slow
def test_a_study_with_clip_runs_through_the_command_line_and_not_twice(
    tiny_llava: str, tiny_clip: ClipBuilder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolate(monkeypatch, tmp_path)
    small = "\n".join(
        [
            "trainer: {limit_train_batches: 2, limit_val_batches: 1, accelerator: cpu, "
            "enable_progress_bar: false}",
            "data: {class_path: Domain, init_args: {name: glyphs, per_class: 2, val_per_class: 1, "
            "test_per_class: 1, prompt: {class_path: ClassificationPrompt, "
            "init_args: {task: signs}}}}",
            "model: {scorers: [{class_path: Likelihood}]}",
        ]
    )
    Path("small.yaml").write_text(small)
    shipped_clip = (CONFIGS / "studies/projection/zero_shot.yaml").read_text()
    Path("clip.yaml").write_text(
        shipped_clip.replace("openai/clip-vit-large-patch14-336", tiny_clip("clip"))
    )
    Path("study.yaml").write_text(
        f"""
name: tiny
checkpoints: {{tiny: {tiny_llava}}}
domains: {{glyphs: [small.yaml]}}
zero_shot: [{CONFIGS}/policy/zero_shot.yaml, clip.yaml]
presets: {{own: {{ft_proj: [{CONFIGS}/policy/ft_proj.yaml], \
ft_e2e: [{CONFIGS}/policy/ft_e2e.yaml]}}}}
seeds: [0]
scorer: likelihood
"""
    )
    calls: list[Sequence[str]] = []

    def in_this_process(arguments: Sequence[str], log: Path, lock: int) -> None:
        calls.append(arguments)
        main(list(arguments))

    for _ in range(2):
        assert not run_study(parse("--config", "study.yaml"), in_this_process)

    assert len(calls) == 3
    report = Path("studies/tiny/report.md").read_text()
    assert "3 of 3 cells are finished" in report
    assert "undecided" in report  # of a single seed nothing is known
    assert "| accuracy | CLIP zero-shot | " in report
    clip = next(Path("studies").rglob("clip-predictions.csv"))
    ids = []
    for path in (clip, clip.with_name("predictions.csv")):
        with path.open(newline="") as file:
            ids.append([row["sample_id"] for row in csv.DictReader(file)])
    assert ids[0] == ids[1]
