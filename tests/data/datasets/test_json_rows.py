import json
import pickle
from pathlib import Path

import pytest

from lightning_mllm.data.datasets import json_rows
from lightning_mllm.data.datasets.json_rows import MalformedRowsError, RowBytes, find_json_rows
from lightning_mllm.errors import DataError

ROWS = [{"id": "é名"}, 12, 'x\\"', [1, {"a": []}], {}, -1.5e3, None, {"text": "y" * 90}]
TEXTS = {
    "compact": json.dumps(ROWS, separators=(",", ":"), ensure_ascii=False),
    "indented": json.dumps(ROWS, indent=3),
    "crlf": json.dumps(ROWS, indent=1).replace("\n", "\r\n") + "\r\n ",
    "bom": "\ufeff " + json.dumps(ROWS, ensure_ascii=False),
    "empty": "[ ]",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("window", [1, 7, 1 << 20])
def test_rows_are_where_a_parser_of_the_whole_file_finds_them(
    name: str, window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "_WINDOW", window)
    path = tmp_path / "rows.json"
    path.write_bytes(TEXTS[name].encode())

    rows = list(find_json_rows(path))

    file = pickle.loads(pickle.dumps(RowBytes(path)))
    assert [row.content for row in rows] == json.loads(TEXTS[name].lstrip("\ufeff"))
    assert [json.loads(file.read(row.start, row.length)) for row in rows] == (
        [row.content for row in rows]
    )
    assert [row.number for row in rows] == [*range(1, len(rows) + 1)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_rows_whatever_ends_them(end: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(end.join(["\ufeff{}", "", '{"a": "é\u2028"}', "  ", "{bad", "3"]).encode())

    *rows, bad, last = find_json_rows(path)

    assert [row.content for row in (*rows, last)] == [{}, {"a": "é\u2028"}, 3]
    assert (bad.number, last.number) == (3, 4)
    assert isinstance(bad.content, json.JSONDecodeError)
    file = RowBytes(path)
    assert [json.loads(file.read(row.start, row.length)) for row in (*rows, last)] == (
        [row.content for row in (*rows, last)]
    )


@pytest.mark.parametrize(
    "text", ["", "[1", "[1,]", "[1 2]", "{}", "[1] 2", "[,1]", "[1, tru]", '["\ud800"]', "[1}"]
)
def test_what_is_no_list_is_malformed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(MalformedRowsError):
        list(find_json_rows(path))


def test_a_file_that_is_changed_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[1, 2, 3]")
    file = RowBytes(path)
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"rows\.json was changed while it is being used"):
        file.read(1, 1)
