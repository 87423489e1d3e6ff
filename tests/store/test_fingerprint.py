from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from lightning_mllm.store.fingerprint import fingerprint_files, fingerprint_tensors
from tests.support.weight_files import write_checkpoint


@pytest.mark.parametrize("size", [10, 400_000])
def test_weights_of_the_same_shape_that_were_trained_again_are_noticed(
    tmp_path: Path, size: int
) -> None:
    before = fingerprint_files(str(write_checkpoint(tmp_path, 1.0, size)))

    assert fingerprint_files(str(write_checkpoint(tmp_path, 2.0, size))) != before
    assert fingerprint_files(str(write_checkpoint(tmp_path, 1.0, size))) == before


def test_the_place_and_the_times_of_a_checkpoint_and_its_card_are_no_part_of_it(
    tmp_path: Path,
) -> None:
    first = write_checkpoint(tmp_path / "first", 1.0)
    second = Path(shutil.copytree(first, tmp_path / "second"))
    os.utime(second / "config.json", (0, 0))
    (second / "README.md").write_text("A card.")

    assert fingerprint_files(str(second)) == fingerprint_files(str(first))


def test_files_that_an_index_names_count_wherever_they_are(tmp_path: Path) -> None:
    shared = write_checkpoint(tmp_path / "parts", 1.0)
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"b": "../parts/model.safetensors"}})
    )
    before = fingerprint_files(str(stage))

    write_checkpoint(shared, 2.0)

    assert fingerprint_files(str(stage)) != before


def test_a_name_of_the_hub_is_its_own_fingerprint() -> None:
    assert fingerprint_files("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_any_value_name_shape_dtype_or_description_tells_tensors_apart() -> None:
    values = torch.arange(6.0)
    same, changed = values.clone(), values.clone()
    changed[-1] += 1

    found = [
        fingerprint_tensors([("a", values)]),
        fingerprint_tensors([("a", changed)]),
        fingerprint_tensors([("b", values)]),
        fingerprint_tensors([("a", values.view(2, 3))]),
        fingerprint_tensors([("a", values.view(torch.int32))]),
        fingerprint_tensors([("a", values)], "of another model"),
    ]

    assert len(set(found)) == len(found)
    assert fingerprint_tensors([("a", same.requires_grad_())]) == found[0]
    across = values.view(2, 3).T
    assert fingerprint_tensors([("a", across)]) == fingerprint_tensors([("a", across.contiguous())])


def test_the_fingerprint_of_tensors_never_changes() -> None:
    """Feature caches hold it."""
    assert fingerprint_tensors([("a", torch.arange(3))], "x")[:16] == "7adccd373f55c6e8"
