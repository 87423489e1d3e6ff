from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.store.manifest import (
    claim_folder_in_manifest,
    find_manifest_changes,
    manifest_digest,
)


def test_settings_that_differ_are_named_with_both_values() -> None:
    then = {"analysis": {"width": 9, "same": 1}, "source": {"step": 3}}
    now = {"analysis": {"width": 7, "same": 1, "new": None}, "source": "none"}

    assert find_manifest_changes(then, now) == {
        "analysis.width": (9, 7),
        "source": ({"step": 3}, "none"),
    }


def test_the_same_settings_go_on_and_others_are_refused_with_the_way_on(tmp_path: Path) -> None:
    claim_folder_in_manifest(tmp_path, {"path": Path("a"), "columns": ("x", "y")})
    claim_folder_in_manifest(tmp_path, {"path": Path("a"), "columns": ["x", "y"]})

    assert json.loads((tmp_path / "making.json").read_text())["path"] == "a"
    with pytest.raises(
        ConfigError, match=r"path was 'a', is 'b'. Use the settings .* or start again in another"
    ):
        claim_folder_in_manifest(tmp_path, {"path": Path("b"), "columns": ["x", "y"]})


def test_a_manifest_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "making.json").write_text("{")

    with pytest.raises(DataError, match=r"making\.json can't be read"):
        claim_folder_in_manifest(tmp_path, {})


def test_a_digest_is_that_of_the_joined_texts() -> None:
    assert (
        manifest_digest(["a", "b"]) == manifest_digest(["ab"]) == "fb8e20fc2e4c3f24"
    )  # nothing may change it: files hold it
