from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForImageTextToText

from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.recipe import run_recipe_step
from lightning_mllm.testbed.training.checkpoints import STAGES
from lightning_mllm.testbed.training.recipe import TestbedRecipe
from tests.support.command_line import CONFIGS, TRIAL, isolate
from tests.support.shipped_configs import EXAMINATION, START, TRAINED

SMALL = {
    "image_size": 64,
    "patch_size": 16,
    "vision_width": 16,
    "vision_layers": 2,
    "text_width": 16,
    "text_layers": 1,
}


def config(name: str) -> tuple[str, str]:
    return "--config", str(CONFIGS / name)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("testbed") / "start"
    main(["tiny", str(folder), *config(START)])
    return str(folder)


def test_the_recipe_starts_from_a_llava_of_a_few_million_parameters(start: str) -> None:
    weights = sum(path.stat().st_size for path in Path(start).glob("*.safetensors")) / 4

    assert 2e6 < weights < 6e6


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_trains_the_parts_that_its_comment_says(
    start: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolate(monkeypatch, tmp_path)
    few = (
        "--data.init_args.scenes",
        "32",
        "--data.init_args.val_scenes",
        "4",
        "--data.init_args.eval_batch_size",
        "4",
    )
    alone = ("--trainer.devices", "1", "--trainer.strategy", "auto")

    cli = ModelCLI(["fit", *config(name), "--model.checkpoint", start, *few, *alone, *TRIAL])

    assert cli.model.freeze_report.trainable_parts == TRAINED[name]
    assert cli.trainer.global_step == 1


def test_the_examination_counts_per_kind(
    start: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolate(monkeypatch, tmp_path)
    few = ("--data.init_args.per_kind", "2", "--data.init_args.parts", "[presence]")

    cli = ModelCLI(["test", *config(EXAMINATION), "--model.checkpoint", start, *few, *TRIAL])

    assert "test/exact_match/presence/adversarial" in cli.trainer.callback_metrics


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The shipped recipe, with a smaller model and a few scenes."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for path in (CONFIGS / "testbed_training").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        if "size" in content:
            content["size"] |= SMALL
        elif "scenes" in content["data"]["init_args"]:
            content["data"]["init_args"] |= {
                "scenes": 32,
                "val_scenes": 4,
                "test_scenes": 4,
                "batch_size": 16,
            }
            content["trainer"] |= {"devices": 1, "strategy": "auto", "enable_progress_bar": False}
        (folder / path.name).write_text(yaml.safe_dump(content))
    return folder


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_recipe_makes_the_stages_once_and_mends_what_is_missing(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    folder = tmp_path / "made"
    recipe = TestbedRecipe(
        folder, configs, lightning=lambda arguments: main(list(arguments)), side_by_side=False
    )

    recipe.run()

    for stage in STAGES:
        AutoModelForImageTextToText.from_pretrained(folder / "weights" / stage)
    made = state(folder)
    recipe.run()
    assert state(folder) == made

    weights = (folder / "instructed/model.safetensors").read_bytes()
    shutil.rmtree(folder / "instructed")  # as if the export had been interrupted: its run is there
    recipe.run()
    assert (folder / "instructed/model.safetensors").read_bytes() == weights


def test_a_command_that_fails_ends_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        run_recipe_step(["fit", "--config", str(tmp_path / "missing.yaml")])
