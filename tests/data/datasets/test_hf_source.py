import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lightning_mllm import checkpoint_files
from lightning_mllm.data.datasets.hf_source import HFSource
from lightning_mllm.errors import ConfigError, DataError
from tests.support.hf_tables import classes, private_caches, save_splits, stored_picture


@pytest.fixture(autouse=True, scope="module")
def _private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with private_caches(tmp_path_factory.mktemp("caches")):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with a table of four rows each."""
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(("train-0", "train-1", "validation", "test")):
        classes(4 * number, 4).to_parquet(folder / f"{name}.parquet")
    return folder


def counts(path: str | Path, **options: Any) -> dict[str, int]:
    tables = HFSource(str(path), **options).open()
    return {name: table.num_rows for name, table in tables.items()}


def test_files_of_a_folder_are_sorted_into_splits_by_name(folder: Path) -> None:
    assert counts(folder) == {"train": 8, "validation": 4, "test": 4}
    assert counts(folder, files={"test": "train-*.parquet"}) == {"test": 8}


def test_a_file_and_a_glob_are_one_split(folder: Path) -> None:
    assert counts(folder / "train-1.parquet") == {"train": 4}
    assert counts(folder / "train-*.parquet") == {"train": 8}
    assert HFSource(str(folder / "train-*.parquet")).root == folder


def test_what_save_to_disk_writes_is_opened(tmp_path: Path) -> None:
    both = save_splits(tmp_path / "both", train=classes(0, 4), test=classes(4, 2))
    classes(0, 3).save_to_disk(str(tmp_path / "one"))

    assert counts(both) == {"train": 4, "test": 2}
    assert counts(tmp_path / "one") == {"train": 3}


def test_arrow_and_jsonl_files_are_read(tmp_path: Path) -> None:
    table = classes(0, 3).remove_columns("image")
    table.to_json(tmp_path / "rows.jsonl")
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(tmp_path / "rows.arrow")

    assert counts(tmp_path / "rows.jsonl") == {"train": 3}
    assert counts(tmp_path / "*.arrow") == {"train": 3}


def test_webdataset_shards_are_read(tmp_path: Path) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"train-{shard}.tar", "w") as tar:
            for number in range(3):
                files = {
                    "png": stored_picture(3 * shard + number),
                    "cls": str(number % 2).encode(),
                    "json": json.dumps({"asked": "What?"}).encode(),
                }
                for suffix, content in files.items():
                    entry = tarfile.TarInfo(f"{3 * shard + number:04d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))

    assert counts(tmp_path / "train-*.tar") == {"train": 6}
    assert counts(tmp_path) == {"train": 6}


def test_tables_are_mapped_into_memory(folder: Path) -> None:
    table = HFSource(str(folder)).open()["train"]

    assert table.cache_files


def test_what_is_no_dataset_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    for path, said in [
        (tmp_path / "absent" / "x.parquet", "There is no file or folder"),
        (tmp_path / "*.parquet", "can't be opened"),
        (tmp_path, "can't be opened .* Expected a hub id, a folder"),
    ]:
        with pytest.raises(DataError, match=said):
            counts(path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and nothing else")

    with pytest.raises(DataError, match=r"rows\.parquet.* can't be opened"):
        counts(tmp_path / "rows.parquet")


def test_a_hub_id_out_of_reach_is_refused_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "is_reachable", lambda url: False)
    with pytest.raises(DataError, match=r"not in the cache of the Hugging Face hub, and .* can't"):
        counts("nobody/nothing")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE says not to ask the hub\. Check the spel"):
        counts("nobody/nothing")


def test_a_hub_id_goes_to_the_library_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    given: list[Any] = []
    monkeypatch.setattr(checkpoint_files, "is_reachable", lambda url: True)

    def load(*one: Any, **two: Any) -> dict[str, Any]:
        given.append((one, two))
        return {}

    monkeypatch.setattr(datasets, "load_dataset", load)

    HFSource("ethz/food101", "default", "main", {"train": "data/train-*"}).open()

    options = {"data_files": {"train": "data/train-*"}, "revision": "main", "keep_in_memory": False}
    assert given == [(("ethz/food101", "default"), options)]


def test_what_the_library_says_of_a_hub_id_comes_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    def fail(error: Exception) -> str:
        def load(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(DataError) as caught:
            counts("owner/name")
        return str(caught.value)

    monkeypatch.setattr(checkpoint_files, "is_reachable", lambda url: True)
    script = RuntimeError("Dataset scripts are no longer supported, but found name.py")
    assert "set `data_revision` to refs/convert/parquet" in fail(script)
    config = ValueError("Config name is missing. Please pick one: ['a', 'b']")
    assert fail(config).endswith("['a', 'b']. Set `config` to one of them.")
    assert "(DatasetNotFoundError: it is gated)" in fail(
        datasets.exceptions.DatasetNotFoundError("it is gated.")
    )


def test_without_the_package_the_answer_is_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(ConfigError, match=r'pip install "lightning-mllm\[datasets\]"'):
        HFSource("owner/name").open()
