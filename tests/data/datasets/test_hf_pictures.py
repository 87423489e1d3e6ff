import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_mllm.data.datasets import hf_pictures
from lightning_mllm.data.datasets.hf_pictures import HFTable, find_table_facts, look_at_table
from lightning_mllm.data.datasets.hf_source import HFSource
from tests.support.hf_tables import classes, private_caches, stored_picture, table


@pytest.fixture(autouse=True)
def _private(tmp_path: Path) -> Iterator[None]:
    with private_caches(tmp_path):
        yield


def rows_of(cells: list[Any], feature: Any, **columns: Any) -> HFTable:
    stored = table({"image": cells, **columns}, image=feature)
    return HFTable(stored, "beans, split 'train'", tuple(columns), "image", "id")


def test_each_picture_is_measured_and_told_apart_by_its_bytes() -> None:
    import datasets

    one, other = stored_picture(1), stored_picture(2)
    cells = [[one, other], [], [other], None]

    facts = look_at_table(rows_of(cells, datasets.List(datasets.Value("binary"))))

    assert facts.pictures["row"].tolist() == [0, 0, 2]
    assert facts.pictures["width"].tolist() == [21, 22, 22]
    assert facts.pictures["height"].tolist() == [16, 16, 16]
    assert len(np.unique(facts.pictures[["high", "low"]])) == 2
    assert [len(facts.list_row(row)) for row in range(4)] == [2, 0, 1, 0]


def test_a_broken_picture_has_no_width_and_a_path_less() -> None:
    import datasets

    cells = [
        {"bytes": stored_picture(1)[:-20], "path": "a.png"},
        {"bytes": None, "path": "a.png"},
        None,
    ]

    facts = look_at_table(rows_of(cells, datasets.Image()))

    assert facts.pictures["row"].tolist() == [0, 1]
    assert facts.pictures["width"].tolist() == [0, -1]


def test_rows_with_the_id_of_an_earlier_row_are_known() -> None:
    import datasets

    cells = [{"bytes": stored_picture(k), "path": None} for k in range(6)]

    facts = look_at_table(rows_of(cells, datasets.Image(), id=["a", "b", "a", None, "", "b"]))

    assert facts.repeated.tolist() == [2, 5]


def test_equal_tables_have_one_content_and_others_another() -> None:
    import datasets

    cells = [{"bytes": stored_picture(k), "path": None} for k in range(2)]
    other = [cells[0], {"bytes": stored_picture(9), "path": None}]

    def content(cells: list[Any], *ids: str) -> str:
        return look_at_table(rows_of(cells, datasets.Image(), id=ids)).content

    assert content(cells, "a", "b") == content(cells, "a", "b")
    assert len({content(cells, "a", "b"), content(other, "a", "b"), content(cells, "a", "c")}) == 3


def test_a_table_is_looked_at_once_until_its_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look(rows: HFTable) -> Any:
        looked.append(rows.name)
        return look_at_table(rows)

    def find() -> Any:
        dataset = HFSource(str(tmp_path / "beans")).open()["train"]
        return find_table_facts(HFTable(dataset, "beans", ("label",), "image"))

    monkeypatch.setattr(hf_pictures, "look_at_table", look)
    classes(0, 3).save_to_disk(str(tmp_path / "beans"))
    first, again = find(), find()
    assert len(looked) == 1
    assert np.array_equal(first.pictures, again.pictures)
    assert first.content == again.content
    assert isinstance(again.pictures.base, np.memmap)

    file = tmp_path / "beans" / "data-00000-of-00001.arrow"
    os.utime(file, ns=(1, 1))
    assert find().content == first.content
    assert len(looked) == 2


def test_a_look_that_was_cut_short_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes(0, 3).save_to_disk(str(tmp_path / "beans"))
    dataset = HFSource(str(tmp_path / "beans")).open()["train"]
    rows = HFTable(dataset, "beans", ("label",), "image")

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            find_table_facts(rows)
    folder = tmp_path / "cache" / "lightning_mllm" / "data_check" / "tables"
    assert not list(folder.glob("*.npy*"))
    assert len(find_table_facts(rows).pictures) == 3


def test_a_table_reaches_another_process_without_its_rows(tmp_path: Path) -> None:
    classes(0, 300).save_to_disk(str(tmp_path / "beans"))
    dataset = HFSource(str(tmp_path / "beans")).open()["train"]
    rows = HFTable(dataset, "beans", ("label",), "image")

    sent = pickle.dumps(rows)

    assert len(sent) < 10_000
    assert pickle.loads(sent).read_pictures(7) == [stored_picture(7)]


def test_fields_within_columns_are_read() -> None:
    stored = table({"json": [{"q": "a", "n": [{"x": "b"}]}]})
    rows = HFTable(stored, "beans", ("json.q", "json.n.x"), None)

    assert rows.read_texts(0) == {"json.q": "a", "json.n.x": ["b"]}
    assert rows.read_pictures(0) == []
    assert json.dumps(list(rows.read_rows())) == '[[0, {"json.q": "a", "json.n.x": ["b"]}, []]]'
