from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_mllm.errors import DataError
from lightning_mllm.store.files import read_json, replacing_folder, write_csv_file, write_json


def test_rows_are_written_with_header_and_empty_cells_for_nothing(tmp_path: Path) -> None:
    path = write_csv_file(
        tmp_path / "new" / "table.csv", ["a", "b"], [["x, y", None], ["z", float("nan")]]
    )

    assert path.read_text().splitlines() == ["a,b", '"x, y",', "z,"]


def test_json_has_null_for_nan(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"f1": [1.0, float("nan")], "n": 3})

    assert json.loads(path.read_text()) == {"f1": [1.0, None], "n": 3}


def test_a_failure_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    def failing() -> Iterator[list[int]]:
        yield [1]
        raise KeyError("broken")

    path = write_csv_file(tmp_path / "table.csv", ["a"], [[0]])
    with pytest.raises(KeyError):
        write_csv_file(path, ["a"], failing())

    assert path.read_text().splitlines() == ["a", "0"]
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"

    def rows() -> Iterator[list[int]]:
        yield [1]
        write_csv_file(path, ["other"], [[2]])  # another process ends first
        yield [3]

    write_csv_file(path, ["a"], rows())

    assert path.read_text().splitlines() == ["a", "1", "3"]


@pytest.mark.parametrize("content", ['{"scorers": {', "[1, 2]", "\x80"])
def test_a_file_that_holds_no_json_object_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(content.encode("latin-1"))

    with pytest.raises(DataError, match=r"scores\.json"):
        read_json(path)


def test_a_folder_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with pytest.raises(KeyError), replacing_folder(target) as folder:
        (folder / "half").write_text("")
        raise KeyError("broken")
    assert not list((tmp_path / "new").iterdir())

    with replacing_folder(target) as folder:
        (folder / "whole").write_text("")

    assert [path.name for path in target.iterdir()] == ["whole"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]
