from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.data import DermNet, Split
from lightning_mllm.errors import DataError
from tests.support.command_line import write_image_folder
from tests.support.datamodule_contract import DataModuleContract
from tests.support.published_datasets import DERMNET, write_dermnet

CLEAN = {"Acne and Rosacea", "Poison Ivy and other Contact Dermatitis", "Urticaria Hives"}


def labels(root: Path, split: Split = "train", **options: str) -> set[str | None]:
    module = DermNet(root=str(root), checkpoint="unused", **options)
    return {sample.label for sample in module.load(split)}


class TestDermNet(DataModuleContract):
    def write(self, folder: Path) -> None:
        write_dermnet(folder)

    def make(self, checkpoint: str, **options: Any) -> DermNet:
        return DermNet(root=str(self.folder), checkpoint=checkpoint, **options)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_photos_is_no_part_of_a_disease(tmp_path: Path, split: Split) -> None:
    assert labels(write_dermnet(tmp_path / "dermnet"), split) == CLEAN


def test_names_can_be_kept(tmp_path: Path) -> None:
    assert labels(write_dermnet(tmp_path / "dermnet"), remove="") == set(DERMNET)


def test_two_folders_do_not_become_one_class_in_silence(tmp_path: Path) -> None:
    root = write_image_folder(
        tmp_path / "dermnet", {"train/Eczema": 2, "train/Eczema Photos": 2, "test/Eczema Photos": 2}
    )

    with pytest.raises(
        DataError, match=r"'Eczema' and 'Eczema Photos' of .* are both 'Eczema' without ' Photos'"
    ):
        labels(root)


def test_the_layout_is_named(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "dermnet", {"train/Urticaria Hives": 2})

    with pytest.raises(DataError, match="has no folder 'test'; DermNet is published as"):
        labels(root)
