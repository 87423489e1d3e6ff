"""Files of vectors and masks: whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_mllm.analysis.subnetwork.calibration import Calibration
from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.analysis.subnetwork.matrix_files import write_matrix_file
from lightning_mllm.analysis.subnetwork.pruning import Pruning
from lightning_mllm.analysis.subnetwork.subnetwork import SubNetwork
from lightning_mllm.errors import CheckpointError
from tests.support.questions import load

ONE = Matrix(0, "mlp.up_proj")


def small() -> SubNetwork:
    return SubNetwork.of("small", [(ONE, torch.ones(3, 5, dtype=torch.bool))])


def test_a_file_has_one_bit_per_weight(tiny_llava: str, tmp_path: Path) -> None:
    backbone = load(tiny_llava)
    subnetwork = SubNetwork.by_score("magnitude", backbone, Pruning("magnitude"))
    subnetwork.save(tmp_path / "magnitude.safetensors")

    again = SubNetwork.load(tmp_path / "magnitude.safetensors")

    assert (again.name, dict(again.shapes)) == (subnetwork.name, dict(subnetwork.shapes))
    assert again.digest == subnetwork.digest
    weights = sum(module.weight.numel() for module in matrices(backbone).values())
    assert sum(map(len, again.bits.values())) == weights / 8
    assert [path.name for path in tmp_path.iterdir()] == ["magnitude.safetensors"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no sub-network file .*missing"):
        SubNetwork.load(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"half"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    small().save(tmp_path / "damaged")
    whole = (tmp_path / "damaged").read_bytes()
    (tmp_path / "damaged").write_bytes(whole[: len(whole) // 2] if content == b"half" else content)

    with pytest.raises(CheckpointError, match=r"sub-network file .*damaged can't be read"):
        SubNetwork.load(tmp_path / "damaged")


@pytest.mark.parametrize(
    "entry", ["{", json.dumps([]), json.dumps({"holds": "sub-network", "name": "x"})]
)
def test_a_file_that_says_something_else_of_itself_is_refused(tmp_path: Path, entry: str) -> None:
    save_file(
        {str(ONE): torch.zeros(2, dtype=torch.uint8)},
        tmp_path / "odd",
        metadata={"lightning_mllm": entry},
    )

    with pytest.raises(CheckpointError, match=r"odd (can't be read|is not a sub-network file)"):
        SubNetwork.load(tmp_path / "odd")


def test_a_calibration_of_another_version_is_refused(tmp_path: Path) -> None:
    write_matrix_file(
        tmp_path / "old",
        {ONE: torch.zeros(2)},
        "calibration",
        {"task": "x", "pruning": {"share": 0.5}},
    )

    with pytest.raises(CheckpointError, match=r"calibration file .*old can't be read"):
        Calibration.load(tmp_path / "old")


def test_another_kind_of_file_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    (weights,) = Path(tiny_llava).glob("*.safetensors")
    small().save(tmp_path / "bits")

    with pytest.raises(CheckpointError, match="is not a sub-network file of this package"):
        SubNetwork.load(weights)
    with pytest.raises(CheckpointError, match="is not a calibration file of this package"):
        Calibration.load(tmp_path / "bits")


def test_a_disk_that_can_not_be_written_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match="could not be written"):
        small().save(tmp_path / "file" / "bits")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
