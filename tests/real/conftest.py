from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from lightning_mllm.real.prepare import CAPTIONS, FOLDERS, PICTURES
from tests.support.command_line import picture

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
            for number in range(12):
                name = f"{split}-{number}.jpg"
                archive.write(tmp_path / "one.jpg", name)
                captions[split][name] = DOG if number % 2 else STREET
    for name in FOLDERS.values():
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.write(tmp_path / "one.jpg", "class/1.jpg")
    (folder / CAPTIONS).write_text(json.dumps(captions))
    return folder
