from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForImageTextToText

from lightning_mllm.testbed.checkpoints import STAGES
from lightning_mllm.testbed.recipe import Recipe
from tests.running import CONFIGS

SMALL = {"image_size": 64, "patch_size": 16, "vision_width": 16, "vision_layers": 2, "text_width": 16, "text_layers": 1}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The shipped recipe, with a smaller model and a few scenes."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for path in (CONFIGS / "testbed").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        if "size" in content:
            content["size"] |= SMALL
        elif "scenes" in content["data"]["init_args"]:
            content["data"]["init_args"] |= {"scenes": 32, "val_scenes": 4, "test_scenes": 4}
            content["trainer"] |= {"devices": 1, "strategy": "auto", "enable_progress_bar": False}
        (folder / path.name).write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.slow
def test_the_recipe_makes_the_stages_and_does_nothing_twice(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = tmp_path / "made"

    Recipe(folder, configs).run()

    for stage in STAGES:
        AutoModelForImageTextToText.from_pretrained(folder / "weights" / stage)
    times = {path: os.stat(path).st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    Recipe(folder, configs).run()
    assert times == {path: os.stat(path).st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_interrupted_step_goes_on_from_its_last_checkpoint(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = tmp_path / "made"
    recipe = Recipe(folder, configs)
    recipe.run()
    whole = (folder / "instructed" / "model.safetensors").read_bytes()
    for name in ("instructed", "weights"):
        (folder / name).rename(folder / f"old-{name}")

    recipe.run()  # its run is finished, so only the export is done again

    assert (folder / "instructed" / "model.safetensors").read_bytes() == whole
