"""Rows that survive a kill, whatever is cut off, and that are the same however they came about."""

from __future__ import annotations

import csv
import shutil
import tracemalloc
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.store.files import PARTIAL
from lightning_mllm.store.rows import Rows, read_rows


@dataclass(frozen=True)
class Row:
    sample_id: str
    layer: int = 0
    value: float = nan
    right: bool = True
    text: str = ""


SAMPLES = {
    name: [
        Row(name, layer, value=0.1 * layer + 1e-17, right=layer > 0, text='a, "b" \u2028 \u00e9')
        for layer in range(2)
    ]
    for name in ("b/2", "a,1", "c")
}


def fill(rows: Rows[Row], *names: str) -> Rows[Row]:
    for name in names or SAMPLES:
        if name not in rows.done:
            rows.append({name: SAMPLES[name]})
    return rows


def whole(folder: Path) -> bytes:
    fill(Rows(Row, folder)).merge()
    return (folder / "rows.csv").read_bytes()


def test_the_table_holds_what_was_written_ordered_by_sample(tmp_path: Path) -> None:
    on_disk, in_memory = fill(Rows(Row, tmp_path)), fill(Rows(Row))

    for rows in (on_disk, in_memory):
        table = rows.table()
        expected = [row for name in sorted(SAMPLES) for row in SAMPLES[name]]
        for column, cells in table.items():
            assert cells.tolist() == [getattr(row, column) for row in expected]


def test_numbers_come_back_bit_for_bit_and_nan_as_nan(tmp_path: Path) -> None:
    values = [1 / 3, 1e-300, -np.inf, nan]
    rows = Rows(Row, tmp_path)
    rows.append({"a": [Row("a", value=value) for value in values]})

    found = rows.table()["value"].tolist()
    assert found[:3] == values[:3]
    assert isnan(found[3])


def test_a_file_is_good_csv_at_any_time(tmp_path: Path) -> None:
    fill(Rows(Row, tmp_path), "b/2", "c")

    found = []
    for path in sorted(tmp_path.glob("rows-0-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found += [row["sample_id"] for row in csv.DictReader(file)]
    assert found == ["b/2", "b/2", "c", "c"]


def test_a_batch_is_one_file_and_its_samples_are_there_together(tmp_path: Path) -> None:
    rows = Rows(Row, tmp_path)

    rows.append(SAMPLES)

    assert rows.done == set(SAMPLES)
    assert [path.name for path in tmp_path.glob("rows*")] == ["rows-0-000000.csv"]
    rows.merge()
    assert (tmp_path / "rows.csv").read_bytes() == whole(tmp_path / "one by one")


@pytest.mark.parametrize("finished", range(len(SAMPLES)))
def test_wherever_a_kill_cuts_a_file_the_resumed_rows_are_those_of_an_uninterrupted_run(
    tmp_path: Path, finished: int
) -> None:
    expected = whole(tmp_path / "whole")
    fill(Rows(Row, tmp_path / "killed"))
    *parts, last = sorted((tmp_path / "killed").glob("rows-0-*.csv"))[: finished + 1]
    content = last.read_bytes()

    for length in range(len(content) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        for part in parts:
            shutil.copy(part, folder)
        (folder / f"{last.name}.1-abc{PARTIAL}").write_bytes(content[:length])
        resumed = Rows(Row, folder)
        assert len(resumed.done) == finished  # what is whole is not measured again
        fill(resumed).merge()
        assert (folder / "rows.csv").read_bytes() == expected
        assert {path.name for path in folder.iterdir()} == {"rows.csv", "making.json"}


def test_a_kill_while_a_batch_is_written_leaves_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = fill(Rows(Row, tmp_path), "c")

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", power_cut)
        with pytest.raises(KeyboardInterrupt):
            rows.append({name: SAMPLES[name] for name in ("a,1", "b/2")})

    assert rows.done == Rows(Row, tmp_path).done == {"c"}
    fill(Rows(Row, tmp_path)).merge()
    assert (tmp_path / "rows.csv").read_bytes() == whole(tmp_path / "whole")


def test_several_processes_make_the_file_of_one_and_another_number_can_go_on(
    tmp_path: Path,
) -> None:
    expected = whole(tmp_path / "one")
    folder = tmp_path / "many"
    both = [Rows(Row, folder, rank=rank) for rank in range(2)]
    fill(both[1], "b/2")
    fill(both[0], "c")

    alone = Rows(Row, folder, rank=0)

    assert alone.done == {"b/2", "c"}
    fill(alone).merge()
    assert (folder / "rows.csv").read_bytes() == expected
    assert {path.name for path in folder.iterdir()} == {"rows.csv", "making.json"}


def test_a_kill_between_merging_and_clearing_up_counts_nothing_twice(tmp_path: Path) -> None:
    fill(Rows(Row, tmp_path))
    parts = {path: path.read_bytes() for path in tmp_path.glob("rows-0-*.csv")}
    expected = whole(tmp_path)
    for path, content in parts.items():
        path.write_bytes(content)

    Rows(Row, tmp_path).merge()

    assert (tmp_path / "rows.csv").read_bytes() == expected


def test_what_is_merged_can_be_gone_on_from(tmp_path: Path) -> None:
    fill(Rows(Row, tmp_path), "c").merge()

    resumed = fill(Rows(Row, tmp_path))
    resumed.merge()

    assert (tmp_path / "rows.csv").read_bytes() == whole(tmp_path / "other")


def test_of_a_sample_that_two_processes_have_the_first_counts(tmp_path: Path) -> None:
    first, second = Rows(Row, tmp_path, rank=0), Rows(Row, tmp_path, rank=1)
    first.append({"a": [Row("a", 1), Row("a", 2)]})
    second.append({"b": [Row("b", 3)]})
    second.append({"a": [Row("a", 4)]})

    second.merge()

    assert Rows(Row, tmp_path).table()["layer"].tolist() == [1, 2, 3]


def test_going_on_and_merging_never_hold_the_text_of_all_samples(tmp_path: Path) -> None:
    rows, long = Rows(Row, tmp_path), "x" * 2_000
    for number in range(100):
        rows.append(
            {f"{number:03}": [Row(f"{number:03}", layer, text=long) for layer in range(40)]}
        )
    size = sum(path.stat().st_size for path in tmp_path.glob("rows-0-*.csv"))

    for again in range(2):  # from the parts, then from what is merged
        tracemalloc.start()
        resumed = Rows(Row, tmp_path)
        resumed.merge()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(resumed.done) == 100
        assert peak < size / 10, again


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    Rows(Row, tmp_path, {"analysis": {"width": 9, "same": 1}, "source": {"step": 3}})

    Rows(Row, tmp_path, {"analysis": {"width": 9, "same": 1}, "source": {"step": 3}})
    with pytest.raises(
        ConfigError,
        match=r"different settings: analysis\.width was 9, is 7.*start again in another folder",
    ):
        Rows(Row, tmp_path, {"analysis": {"width": 7, "same": 1}, "source": {"step": 3}})


def test_a_cell_may_be_longer_than_131072_characters(tmp_path: Path) -> None:
    rows, text = Rows(Row, tmp_path), '"a", ' * 40_000
    rows.append({name: [Row(name, text=text)] for name in ("a", 'b,"c"')})
    assert Rows(Row, tmp_path).done == {"a", 'b,"c"'}
    assert rows.merge() is not None
    assert Rows(Row, tmp_path).table()["text"].tolist() == [text, text]


def test_a_cell_with_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line break within a cell"):
        Rows(Row, tmp_path).append({"a\nb": [Row("a\nb")]})


def test_a_sample_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="'a' has no row"):
        Rows(Row).append({"a": []})


def test_a_file_of_another_analysis_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Other:
        sample_id: str
        block: str

    path = fill(Rows(Row, tmp_path)).merge()

    assert path is not None
    assert len(read_rows(path, Row)["layer"]) == 6
    Other.__annotations__.update(sample_id=str, block=str)
    with pytest.raises(DataError, match=r"has the columns sample_id, layer.*not those of Other"):
        read_rows(path, Other)
