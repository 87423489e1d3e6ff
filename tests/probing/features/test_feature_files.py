from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lightning_mllm.errors import DataError
from lightning_mllm.probing import load_features, save_features
from tests.support.clusters import clusters

ABOUT = {"names": ["a", "b"], "sample_ids": ["x", "y"], "settings": {}}
TENSORS = {"post-mean": torch.zeros(2, 3), "targets": torch.tensor([0, 1])}


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    sets = {"pre-mean": clusters("val"), "post-mean": clusters("val", width=5)}

    save_features(tmp_path / "deep" / "val.safetensors", sets, {"step": 3})
    found = load_features(tmp_path / "deep" / "val.safetensors")

    assert found.keys() == sets.keys()
    for point, expected in sets.items():
        assert torch.equal(found[point].features, expected.features)
        assert torch.equal(found[point].targets, expected.targets)
        assert (found[point].names, found[point].sample_ids) == (
            expected.names,
            expected.sample_ids,
        )


def test_features_of_different_samples_are_refused(tmp_path: Path) -> None:
    sets = {"pre-mean": clusters("val"), "post-mean": clusters("test")}

    with pytest.raises(
        DataError, match="of different samples; save each split in a file of its own"
    ):
        save_features(tmp_path / "val.safetensors", sets, {})


def test_a_full_disk_names_the_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
        path.write_bytes(b"the first half")
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    path = tmp_path / "val.safetensors"
    save_features(path, {"post-mean": clusters("val")}, {})
    monkeypatch.setattr(safetensors.torch, "save_file", full)

    with pytest.raises(
        DataError, match=r"can't be written to .*val\.safetensors: .*No space left.*Make room"
    ):
        save_features(path, {"post-mean": clusters("test")}, {})
    assert list(tmp_path.iterdir()) == [path]
    # what was there still is
    assert load_features(path)["post-mean"].sample_ids == clusters("val").sample_ids


def test_a_folder_that_is_a_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "features").write_text("")

    with pytest.raises(DataError, match=r"can't be written to .*val\.safetensors"):
        save_features(tmp_path / "features" / "val.safetensors", {"post-mean": clusters("val")}, {})


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (TENSORS, None),
        (TENSORS, {"format": "pt"}),
        (TENSORS, {"about": "{no json"}),
        (TENSORS, {"about": json.dumps({"names": ["a", "b"]})}),
        (TENSORS, {"about": "[1, 2]"}),
        ({"post-mean": torch.zeros(2, 3)}, {"about": json.dumps(ABOUT)}),
    ],
    ids=["no metadata", "of another program", "no JSON", "no sample ids", "a list", "no targets"],
)
def test_what_is_no_file_of_features_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    save_file(tensors, tmp_path / "val.safetensors", metadata=metadata)

    with pytest.raises(
        DataError,
        match=r"val\.safetensors is not a file of features .*Expected one that SaveFeatures",
    ):
        load_features(tmp_path / "val.safetensors")


def test_a_file_that_is_cut_off_or_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "val.safetensors"
    save_features(path, {"post-mean": clusters("val")}, {})
    path.write_bytes(path.read_bytes()[:-8])

    for broken in (path, tmp_path / "nowhere.safetensors"):
        with pytest.raises(DataError, match="is not a file of features"):
            load_features(broken)
