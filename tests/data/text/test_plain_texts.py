"""Texts of files and of samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mllm.data.text.plain_texts import list_sample_texts, read_plain_texts
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample, Turn

ROWS = [
    {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"value": "A red ring."}]},
    {"messages": [{"content": "Who?"}, {"content": [{"type": "image"}, {"text": "A fox."}]}]},
    {"caption": "A blue star."},
    "A plain text.",
]
TEXTS = ["What?", "A red ring.", "Who?", "A fox.", "A blue star.", "A plain text."]


def test_a_file_has_a_text_per_line_or_rows_of_json(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "rows.txt").write_text("\n\n".join(TEXTS))

    for name in ("rows.json", "rows.jsonl", "rows.txt"):
        assert read_plain_texts(tmp_path / name) == TEXTS


@pytest.mark.parametrize("content", ["{", "[]", '[{"id": 1}]'])
def test_what_holds_no_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json (can't be read as texts|holds no text)"):
        read_plain_texts(tmp_path / "a.json")


def test_json_that_is_no_list_is_refused_by_its_keys(tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text('{"info": {}, "annotations": [{"caption": "A fox."}]}')
    with pytest.raises(DataError, match=r"coco\.json must be a JSON list .* 'info', 'annotations'"):
        read_plain_texts(tmp_path / "coco.json")
    (tmp_path / "text.json").write_text('"a text"')
    with pytest.raises(DataError, match=r"text\.json must be a JSON list"):
        read_plain_texts(tmp_path / "text.json")


def test_each_turn_of_a_sample_is_a_text() -> None:
    turns = [Turn("user", " What? ", images=1), Turn("assistant", "A ring."), Turn("user", " ")]
    assert list_sample_texts([Sample(id="a", conversation=turns)]) == ["What?", "A ring."]
