from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_mllm.errors import ConfigError
from lightning_mllm.study.engine.fingerprint import fingerprint
from lightning_mllm.study.engine.main import run_study
from tests.study.conftest import Change, FakeLightning


def write_checkpoint(folder: Path, last: float, size: int = 400_000) -> Path:
    """Write a checkpoint of more than a megabyte whose second tensor is full of one number."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    weights = folder / "model.safetensors"
    save_file({"a": torch.zeros(size), "b": torch.full((300,), last)}, weights)
    os.utime(weights, (last, last))  # two writes may be within one tick of the clock
    return folder


@pytest.mark.parametrize("size", [10, 400_000])
def test_weights_of_the_same_shape_that_were_trained_again_are_noticed(tmp_path: Path, size: int) -> None:
    before = fingerprint(str(write_checkpoint(tmp_path, 1.0, size)))

    assert fingerprint(str(write_checkpoint(tmp_path, 2.0, size))) != before
    assert fingerprint(str(write_checkpoint(tmp_path, 1.0, size))) == before


def test_the_place_and_the_times_of_a_checkpoint_and_its_card_are_no_part_of_it(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "first", 1.0)
    second = Path(shutil.copytree(first, tmp_path / "second"))
    os.utime(second / "config.json", (0, 0))
    (second / "README.md").write_text("A card.")

    assert fingerprint(str(second)) == fingerprint(str(first))


def test_files_that_an_index_names_count_wherever_they_are(tmp_path: Path) -> None:
    shared = write_checkpoint(tmp_path / "parts", 1.0)
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"b": "../parts/model.safetensors"}}))
    before = fingerprint(str(stage))

    write_checkpoint(shared, 2.0)

    assert fingerprint(str(stage)) != before


def test_a_name_of_the_hub_is_its_own_fingerprint() -> None:
    assert fingerprint("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_cells_of_a_checkpoint_that_was_trained_again_are_refused_and_those_of_a_moved_one_are_not(
    study: Change, fake: FakeLightning
) -> None:
    write_checkpoint(Path("checkpoints/tiny"), 1.0)
    run_study(study(), fake)
    shutil.copytree("checkpoints/tiny", "moved")

    again = FakeLightning()
    assert not run_study(study(checkpoints={"tiny": "moved"}), again)
    assert not again.calls
    write_checkpoint(Path("checkpoints/tiny"), 2.0)
    with pytest.raises(ConfigError, match=r"12 of 12 cells .* the checkpoint"):
        run_study(study(), again)
