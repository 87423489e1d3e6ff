"""The archives become files that a fit reads."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_mllm.cli.main import main
from lightning_mllm.errors import DataError
from lightning_mllm.models.assemble.checkpoint import assemble_checkpoint
from lightning_mllm.real.prepare import CAPTIONS, FOLDERS, PICTURES, prepare
from tests.support.command_line import CONFIGS, isolate, picture
from tests.support.parts_apart import build_language_model, build_vision_tower

DOG = ["a brown dog leaps .", "the brown dog leaps over a log ."]
STREET = ["cars wait at a light .", "traffic at noon ."]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    captions: dict[str, dict[str, list[str]]] = {}
    picture(1).save(tmp_path / "one.jpg")
    with zipfile.ZipFile(folder / PICTURES, "w") as archive:
        for split in ("train", "dev", "test"):
            captions[split] = {}
            for number in range(8):
                name = f"{split}-{number}.jpg"
                archive.write(tmp_path / "one.jpg", name)
                captions[split][name] = DOG if number % 2 else STREET
    for name in FOLDERS.values():
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.write(tmp_path / "one.jpg", "class/1.jpg")
    (folder / CAPTIONS).write_text(json.dumps(captions))
    return folder


def test_captions_questions_pictures_and_classes_are_written(parts: Path, tmp_path: Path) -> None:
    prepare(parts, tmp_path / "data")

    train = json.loads((tmp_path / "data/captions/train.json").read_text())
    test = json.loads((tmp_path / "data/captions/test.json").read_text())
    assert (len(train), len(test)) == (16, 8)  # of test pictures the first caption only
    references = json.loads((tmp_path / "data/references/test.json").read_text())
    assert list(references) == [row["id"] for row in test]
    assert references["test-1#0"] == ["A brown dog leaps.", "The brown dog leaps over a log."]
    assert {path.name for path in (tmp_path / "data/grey").iterdir()} == {
        row["image"] for row in test
    }
    questions = json.loads((tmp_path / "data/questions/test.json").read_text())
    assert {row["kind"] for row in questions} == {"presence"}
    assert len({row["id"] for row in questions}) == len(questions)
    assert (tmp_path / "data/pictures/test-0.jpg").is_file()
    assert all((tmp_path / "data" / name / "class/1.jpg").is_file() for name in FOLDERS)


def test_a_missing_archive_is_named(parts: Path, tmp_path: Path) -> None:
    (parts / FOLDERS["leaves"]).unlink()
    with pytest.raises(DataError, match=f"{FOLDERS['leaves']} is missing"):
        prepare(parts, tmp_path / "data")


@pytest.mark.slow
def test_the_shipped_config_trains_on_them(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(monkeypatch, tmp_path)
    prepare(parts, tmp_path / "checkpoints/real/data")
    assemble_checkpoint(
        vision=build_vision_tower(tmp_path / "vision", "dinov2", torch.float32),
        llm=build_language_model(tmp_path / "llm", "llama", torch.float32),
        output=tmp_path / "checkpoints/real/assembled",
    )
    few = ("--trainer.max_steps", "2", "--trainer.val_check_interval", "1")
    main(["fit", "--config", str(CONFIGS / "real/1_captions.yaml"), *few])
    assert (tmp_path / "runs/captions/learning_curve.png").is_file()
