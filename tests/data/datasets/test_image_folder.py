import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.data import ImageFolder, Split
from lightning_mllm.errors import DataError
from tests.data.conftest import picture
from tests.support.datamodule_contract import DataModuleContract

CLASSES = ("Bell_pepper leaf", "apple", "zinnia")


def fill(folder: Path, classes: Iterable[str] = CLASSES, count: int = 6) -> Path:
    for shade, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            picture(20 + k, 24, (40 * shade, 9 * k, 90)).save(folder / name / f"{k}.png")
    return folder


def load(root: Path, split: str = "train", **options: Any) -> list[str]:
    module = ImageFolder(root=str(root), checkpoint="unused", **options)
    return [sample.id for sample in module.load(split)]  # type: ignore[arg-type]


class TestSplitByFractions(DataModuleContract):
    def write(self, folder: Path) -> None:
        fill(folder)

    def make(self, checkpoint: str, **options: Any) -> ImageFolder:
        return ImageFolder(root=str(self.folder), checkpoint=checkpoint, **options)


class TestSplitFolders(TestSplitByFractions):
    def write(self, folder: Path) -> None:
        for split in ("train", "val", "test"):
            fill(folder / split, count=3)

    def test_folders_are_the_splits(self) -> None:
        for split in ("train", "val", "test"):
            assert {name.split("/")[0] for name in load(self.folder, split)} == {split}


class TestSplitFoldersWithoutVal(TestSplitByFractions):
    def write(self, folder: Path) -> None:
        fill(folder / "train")
        fill(folder / "test")

    def test_val_is_a_part_of_each_class_of_train(self) -> None:
        val = load(self.folder, "val", val_fraction=0.3)

        assert [name.split("/")[:2] for name in val] == [
            ["train", name] for name in CLASSES for _ in range(2)
        ]
        assert not set(val) & set(load(self.folder, "train", val_fraction=0.3))


def test_labels_keep_their_words(tmp_path: Path, tiny_llava: str) -> None:
    module = ImageFolder(root=str(fill(tmp_path / "images")), checkpoint=tiny_llava)
    module.setup("fit")

    assert module.label_set is not None
    assert module.label_set.names == ("Bell pepper leaf", "apple", "zinnia")
    assert {sample.label for sample in module.samples["train"]} == set(module.label_set.names)


def test_files_that_are_no_images_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = fill(tmp_path / "images")
    (root / "apple" / ".DS_Store").touch()
    (root / "apple" / "notes.txt").touch()
    (root / "README.md").touch()

    with caplog.at_level(logging.WARNING):
        names = load(root)

    assert "3 files" in caplog.text
    assert all(name.endswith(".png") for name in names)


class TestErrors:
    def test_a_missing_root(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="gone does not exist; set `root`"):
            load(tmp_path / "gone")

    def test_a_root_without_folders(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has no class folders"):
            load(tmp_path)

    @pytest.mark.parametrize("missing", ["train", "test"])
    def test_a_missing_split_folder(self, tmp_path: Path, missing: str) -> None:
        fill(tmp_path / ("test" if missing == "train" else "train"))
        with pytest.raises(DataError, match=f"The split folder .*{missing} is missing"):
            load(tmp_path, missing)

    def test_a_misnamed_split_folder(self, tmp_path: Path) -> None:
        fill(tmp_path / "train")
        fill(tmp_path / "valid")
        with pytest.raises(DataError, match="valid looks like a split, but is not named 'val'"):
            load(tmp_path)

    def test_classes_beside_split_folders(self, tmp_path: Path) -> None:
        fill(tmp_path / "train")
        fill(tmp_path, ["apple"])
        with pytest.raises(DataError, match="has both split folders"):
            load(tmp_path)

    def test_an_empty_class_folder(self, tmp_path: Path) -> None:
        root = fill(tmp_path / "images")
        (root / "plum").mkdir()
        with pytest.raises(DataError, match=r"class folder .*plum has no images in it"):
            load(root)

    def test_nested_class_folders(self, tmp_path: Path) -> None:
        root = fill(tmp_path / "images")
        fill(root / "apple", ["green"])
        with pytest.raises(DataError, match=r"apple has a folder in it \('green'\)"):
            load(root)

    def test_a_split_folder_that_is_a_link_out_of_the_root(self, tmp_path: Path) -> None:
        outside, root = fill(tmp_path / "outside"), tmp_path / "images"
        fill(root / "test")
        (root / "train").symlink_to(outside)
        with pytest.raises(DataError, match="train is a link out of"):
            load(root)

    @pytest.mark.parametrize("what", ["file", "folder"])
    def test_links_out_of_the_root(self, tmp_path: Path, what: str) -> None:
        root = fill(tmp_path / "images")
        outside = fill(tmp_path / "elsewhere", ["plum"]) / "plum"
        link = root / "apple" / "link.png" if what == "file" else root / "plum"
        link.symlink_to(outside / "0.png" if what == "file" else outside)
        with pytest.raises(DataError, match="is a link out of"):
            load(root)

    def test_broken_images_show_at_set_up(self, tmp_path: Path, tiny_llava: str) -> None:
        root = fill(tmp_path / "images")
        for name in ("0.png", "1.png", "2.png", "3.png", "4.png", "5.png"):
            (root / "apple" / name).write_bytes(b"")
        with pytest.raises(
            DataError, match=r"(?s)image files can't be used:.*apple.*has zero bytes"
        ):
            ImageFolder(root=str(root), checkpoint=tiny_llava).setup("fit")

    def test_classes_that_cannot_be_told_apart(self, tmp_path: Path, tiny_llava: str) -> None:
        root = fill(tmp_path / "images", ["Bell_pepper", "Bell pepper"])
        with pytest.raises(DataError, match="'Bell pepper' and 'Bell_pepper' are the same"):
            ImageFolder(root=str(root), checkpoint=tiny_llava).setup("fit")


@pytest.mark.parametrize("folder", ["", "train"])
def test_files_of_equal_bytes_share_a_split(tmp_path: Path, folder: str) -> None:
    root = fill(tmp_path / folder, count=30)
    for name in CLASSES:
        for k in range(0, 30, 3):
            (root / name / f"copy{k}.png").write_bytes((root / name / f"{k}.png").read_bytes())
    if folder:
        fill(tmp_path / "test")
    module = ImageFolder(root=str(tmp_path), checkpoint="", val_fraction=0.3, test_fraction=0.3)

    splits: tuple[Split, ...] = ("train", "val") if folder else ("train", "val", "test")
    places: dict[bytes, set[str]] = {}
    for split in splits:
        for sample in module.load(split):
            places.setdefault(Path(str(sample.images[0])).read_bytes(), set()).add(split)

    assert len(places) == 90
    assert all(len(found) == 1 for found in places.values())
    assert len(module.load("val")) == 36  # 0.3 of 3 x 40


def describe(root: Path, *rows: str) -> Path:
    table = root / "metadata.csv"
    table.write_text("\n".join(["file_name,age,site", *rows]) + "\n")
    return table


def test_a_table_gives_pictures_further_fields(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = fill(tmp_path / "images", count=2)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    table = describe(root, *(f"{file},{number},leg" for number, file in enumerate(files)))

    module = ImageFolder(root=str(root), checkpoint="unused", metadata=str(table))

    found = {each.id: dict(each.fields) for each in module.load("train")}
    assert found
    for name, fields in found.items():
        assert fields == {"age": str(files.index(name)), "site": "leg"}
    assert "not images" not in caplog.text


def test_a_table_without_a_picture_or_with_an_empty_cell_is_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", count=2)

    def module() -> ImageFolder:
        return ImageFolder(root=str(root), checkpoint="unused", metadata=str(root / "metadata.csv"))

    describe(root, "apple/0.png,3,leg")
    with pytest.raises(DataError, match=r"metadata\.csv has no row of 'Bell_pepper leaf/0\.png'"):
        list(module().load("train"))
    describe(root, "apple/0.png,,leg")
    with pytest.raises(DataError, match=r"metadata\.csv, row 2, field 'age': is missing or empty"):
        module().load("train")
    describe(root, "apple/0.png,3,leg", "apple/0.png,4,leg")
    with pytest.raises(DataError, match=r"row 3, field 'file_name': 'apple/0\.png' has a row"):
        module().load("train")
