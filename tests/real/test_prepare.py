"""The archives become files that a fit reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mllm.errors import DataError
from lightning_mllm.real.prepare import FOLDERS, prepare


def test_captions_questions_pictures_and_classes_are_written(parts: Path, tmp_path: Path) -> None:
    prepare(parts, tmp_path / "data")

    train = json.loads((tmp_path / "data/captions/train.json").read_text())
    test = json.loads((tmp_path / "data/captions/test.json").read_text())
    assert (len(train), len(test)) == (24, 12)  # of test pictures the first caption only
    references = json.loads((tmp_path / "data/references/test.json").read_text())
    assert list(references) == [row["id"] for row in test]
    assert references["test-1#0"] == ["A brown dog leaps.", "The brown dog leaps over a log."]
    assert {row["image"] for row in test} < {
        path.name for path in (tmp_path / "data/grey").iterdir()
    }
    questions = json.loads((tmp_path / "data/questions/test.json").read_text())
    assert json.loads((tmp_path / "data/questions/few.json").read_text()) == questions
    assert {row["kind"] for row in questions} == {"presence"}
    assert len({row["id"] for row in questions}) == len(questions)
    assert (tmp_path / "data/pictures/test-0.jpg").is_file()
    assert all((tmp_path / "data" / name / "class/1.jpg").is_file() for name in FOLDERS)


def test_a_missing_archive_is_named(parts: Path, tmp_path: Path) -> None:
    (parts / FOLDERS["leaves"]).unlink()
    with pytest.raises(DataError, match=f"{FOLDERS['leaves']} is missing"):
        prepare(parts, tmp_path / "data")


def test_what_would_not_change_is_not_written_again(parts: Path, tmp_path: Path) -> None:
    prepare(parts, tmp_path / "data")
    files = [*(tmp_path / "data").rglob("*.json")]
    times = [path.stat().st_mtime_ns for path in files]

    prepare(parts, tmp_path / "data")

    assert [path.stat().st_mtime_ns for path in files] == times
