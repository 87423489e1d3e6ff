"""What is left of calibrations in a folder, and the sub-network that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.analysis.subnetwork.calibration_files import (
    calibration_file_name,
    load_calibration_files,
)
from lightning_mllm.analysis.subnetwork.stored_subnetwork import StoredSubNetwork
from lightning_mllm.analysis.subnetwork.subnetwork import intersection
from lightning_mllm.errors import CheckpointError
from lightning_mllm.models.backbone import Backbone
from tests.support.decoders import make_backbone
from tests.support.question_analysis_contract import same
from tests.support.wanda_by_hand import CHOOSE, LOGICAL, run


@pytest.fixture(scope="module")
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava, layers=2)


def test_a_folder_holds_vectors_from_which_masks_are_made_again(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    in_memory = run(backbone, tiny_llava).compute()
    analysis = run(backbone, tiny_llava, tmp_path)
    analysis.merge()

    same(analysis.compute(), in_memory)
    files = {
        calibration_file_name(task, tokens, 0)
        for task in (CHOOSE, LOGICAL)
        for tokens in ("perceptual", "textual")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "making.json", *files}
    assert (tmp_path / "rows.csv").read_text().splitlines()[1] == f"test-0,{CHOOSE},0"
    tasks = load_calibration_files(tmp_path, "textual")
    assert set(tasks) == {CHOOSE, LOGICAL}
    alpha = intersection([task.subnetwork(backbone) for task in tasks.values()])
    assert StoredSubNetwork(str(tmp_path), "textual").load(backbone).digest == alpha.digest
    alpha.save(tmp_path / "alpha.safetensors")
    assert (
        StoredSubNetwork(str(tmp_path / "alpha.safetensors")).load(backbone).digest == alpha.digest
    )


def test_a_finished_set_whose_file_is_gone_is_an_error(
    backbone: Backbone, tiny_llava: str, tmp_path: Path
) -> None:
    run(backbone, tiny_llava, tmp_path).merge()
    (tmp_path / calibration_file_name(LOGICAL, "textual", 0)).unlink()

    with pytest.raises(
        CheckpointError, match=r"There is no calibration file .*logical%2Fobj\.textual\.0"
    ):
        run(backbone, tiny_llava, tmp_path)
    with pytest.raises(CheckpointError, match="Every listed file is required"):
        load_calibration_files(tmp_path, "textual")
    assert len(load_calibration_files(tmp_path, "perceptual")) == 2


def test_a_folder_without_calibrations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no rows\.csv with samples"):
        load_calibration_files(tmp_path, "textual")
