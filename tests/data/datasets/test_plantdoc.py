from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.data import PlantDoc
from lightning_mllm.errors import DataError
from tests.support.datamodule_contract import DataModuleContract
from tests.support.published_datasets import TRAIN_ONLY, write_plantdoc


class TestPlantDoc(DataModuleContract):
    def write(self, folder: Path) -> None:
        write_plantdoc(folder)

    def make(self, checkpoint: str, **options: Any) -> PlantDoc:
        return PlantDoc(root=str(self.folder), checkpoint=checkpoint, **options)

    def test_classes_are_words_and_one_is_in_training_only(self, tiny_llava: str) -> None:
        module = self.make(tiny_llava)
        module.setup("test")

        assert module.label_set is not None
        assert module.label_set.names == (
            "Apple Scab Leaf",
            "Bell pepper leaf",
            "Bell pepper leaf spot",
            TRAIN_ONLY,
        )
        assert {sample.label for sample in module.samples["test"]} == set(
            module.label_set.names
        ) - {TRAIN_ONLY}


@pytest.mark.parametrize("missing", ["train", "test"])
def test_half_of_the_repository_is_not_split_instead(tmp_path: Path, missing: str) -> None:
    root = write_plantdoc(tmp_path / "PlantDoc-Dataset")
    (root / missing).rename(tmp_path / "elsewhere")

    with pytest.raises(
        DataError, match=f"has no folder '{missing}'; PlantDoc is published as train/<class>"
    ):
        PlantDoc(root=str(root), checkpoint="unused").load("train")


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone does not exist; set `root`"):
        PlantDoc(root=str(tmp_path / "gone"), checkpoint="unused").load("train")
