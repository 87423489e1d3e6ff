from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.data import DTD, Split
from lightning_mllm.errors import ConfigError, DataError
from tests.support.datamodule_contract import DataModuleContract
from tests.support.published_datasets import DTD_CLASSES, write_dtd


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dtd(tmp_path / "dtd")


def ids(root: Path, split: Split = "train", number: int = 1) -> list[str]:
    return [
        sample.id for sample in DTD(root=str(root), checkpoint="unused", split=number).load(split)
    ]


class TestDTD(DataModuleContract):
    def write(self, folder: Path) -> None:
        write_dtd(folder / "dtd")

    def make(self, checkpoint: str, **options: Any) -> DTD:
        return DTD(root=str(self.folder / "dtd"), checkpoint=checkpoint, **options)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("number", [1, 2])
def test_samples_are_the_rows_of_the_official_file(root: Path, split: Split, number: int) -> None:
    rows = (root / "labels" / f"{split}{number}.txt").read_text().split()

    assert ids(root, split, number) == rows
    assert len(rows) == 4 * len(DTD_CLASSES)


def test_official_splits_differ(root: Path) -> None:
    assert set(ids(root, number=1)).isdisjoint(ids(root, number=2))


BAD_ROWS = {
    "missing image": (
        "banded/banded_0999.jpg",
        r"the image .*banded_0999.jpg does not exist\. Correct the row, or fetch the file again",
    ),
    "unknown class": ("woolly/woolly_0001.jpg", "there is no class folder .*woolly"),
    "no class": ("banded_0002.jpg", "'banded_0002.jpg' is not of the form <class>/<file>"),
    "too deep": (
        "images/banded/banded_0002.jpg",
        "'images/banded/banded_0002.jpg' is not of the form",
    ),
    "repeated": ("banded/banded_0002.jpg", "'banded/banded_0002.jpg' is in row 1 already"),
    "out of the root": ("../secret.jpg", "the image '../secret.jpg' leads out of"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_an_error_names_file_and_row(root: Path, case: str) -> None:
    text, message = BAD_ROWS[case]
    (root / "secret.jpg").touch()
    with (root / "labels" / "train1.txt").open("a") as file:
        file.write(f"\n{text}\n")  # behind 12 rows and a blank one

    with pytest.raises(DataError, match=rf"train1\.txt, row 14: {message}"):
        ids(root)


def test_an_image_that_is_a_link_out_of_the_root(root: Path, tmp_path: Path) -> None:
    image = root / "images" / "banded" / "banded_0002.jpg"
    image.rename(tmp_path / "outside.jpg")
    image.symlink_to(tmp_path / "outside.jpg")

    with pytest.raises(DataError, match=r"row 1: the image 'banded/banded_0002\.jpg' leads out of"):
        ids(root)


def test_a_split_file_that_is_missing_empty_or_no_text(root: Path) -> None:
    file = root / "labels" / "val1.txt"
    for content, message in (
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (None, r"does not exist\. Correct `root`, or the path\.$"),
    ):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(DataError, match=rf"val1\.txt {message}"):
            ids(root, "val")


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_a_root_that_is_another_folder(root: Path, folder: str) -> None:
    (root / folder).rename(root.parent / folder)

    with pytest.raises(
        DataError, match=f"has no folder '{folder}'. Set `root` to the folder 'dtd'"
    ):
        ids(root)


@pytest.mark.parametrize("number", [0, 11])
def test_there_are_ten_splits(root: Path, number: int) -> None:
    with pytest.raises(
        ConfigError, match=f"split is {number}; DTD has the official splits 1 to 10"
    ):
        DTD(root=str(root), checkpoint="unused", split=number)
