import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from lightning_mllm.data import (
    DTD,
    CrisisMMD,
    DermNet,
    Digits,
    MLLMDataModule,
    PlantDoc,
    Published,
    Split,
)
from lightning_mllm.data.datasets.inventory import Inventory, InventoryCount, take_inventory
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample, Turn
from tests.support.command_line import picture
from tests.support.published_datasets import (
    PLANTDOC,
    TRAIN_ONLY,
    write_crisismmd,
    write_dermnet,
    write_dtd,
    write_plantdoc,
)


def shown(inventory: Inventory) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(inventory)
    return capture.get()


@pytest.fixture
def plantdoc(tmp_path: Path) -> PlantDoc:
    return PlantDoc(
        root=str(write_plantdoc(tmp_path / "PlantDoc-Dataset")), checkpoint="", val_fraction=0.4
    )


def test_samples_are_counted_per_split_and_class(plantdoc: PlantDoc) -> None:
    inventory = take_inventory(plantdoc)

    assert inventory.files == 23
    assert inventory.counts["test"] == {
        "Apple Scab Leaf": 2,
        "Bell pepper leaf": 2,
        "Bell pepper leaf spot": 2,
    }
    assert inventory.counts["train"] == {
        **dict.fromkeys(inventory.counts["test"], 3),
        TRAIN_ONLY: 1,
    }
    assert inventory.counts["val"] == {**dict.fromkeys(inventory.counts["test"], 2), TRAIN_ONLY: 1}


def test_a_validation_split_of_ours_counts_as_published_training_images(plantdoc: PlantDoc) -> None:
    assert take_inventory(plantdoc).differences == [
        InventoryCount("train", "images", published=2_342, found=17),
        InventoryCount("train", "classes", published=28, found=4),
        InventoryCount("test", "images", published=236, found=6),
        InventoryCount("test", "classes", published=27, found=3),
    ]
    assert take_inventory(plantdoc, ["train"]).comparisons == ()  # a part can't be compared


def test_published_counts_that_are_met_are_no_difference(
    plantdoc: PlantDoc, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Published(
        images={"train": 17, "test": 6}, classes={"train": 4, "test": 3}, source="this test"
    )
    monkeypatch.setattr(PlantDoc, "published", replica)

    inventory = take_inventory(plantdoc)

    assert len(inventory.comparisons) == 4
    assert not inventory.differences


def test_dropped_rows_are_no_difference_to_the_published_ones(tmp_path: Path) -> None:
    inventory = take_inventory(CrisisMMD(root=str(write_crisismmd(tmp_path / "c")), checkpoint=""))

    assert inventory.counts["test"].total() == 16
    assert {(each.split, each.what): each.found for each in inventory.comparisons} == {
        ("train", "images"): 20,
        ("train", "classes"): 7,
        ("val", "images"): 20,
        ("test", "images"): 20,
    }


def test_each_published_split_of_dtd_is_compared(tmp_path: Path) -> None:
    inventory = take_inventory(DTD(root=str(write_dtd(tmp_path / "dtd")), checkpoint=""), ["val"])

    assert inventory.counts == {"val": Counter(banded=4, cobwebbed=4, zigzagged=4)}
    assert [(each.what, each.found) for each in inventory.comparisons] == [
        ("images", 12),
        ("classes", 3),
    ]


def test_copies_across_splits_and_under_two_labels_are_found(plantdoc: PlantDoc) -> None:
    train, test = plantdoc.root / "train", plantdoc.root / "test"
    shutil.copy(test / PLANTDOC[0] / "0.png", train / PLANTDOC[1] / "copy.png")
    shutil.copy(train / PLANTDOC[2] / "1.png", train / PLANTDOC[2] / "again.png")

    inventory = take_inventory(plantdoc)
    (places,) = [each for each in inventory.copies if any(place.split == "test" for place in each)]

    assert {place.sample_id for place in places} == {
        f"test/{PLANTDOC[0]}/0.png",
        f"train/{PLANTDOC[1]}/copy.png",
    }
    assert places in inventory.across_splits
    assert inventory.mislabelled == [places]
    assert "is in more than one split" in shown(inventory)
    assert f"test test/{PLANTDOC[0]}/0.png (Apple Scab Leaf)" in shown(inventory)


def test_no_copies_no_warning(plantdoc: PlantDoc) -> None:
    assert not take_inventory(plantdoc).copies
    assert "Warning" not in shown(take_inventory(plantdoc))


def test_differences_are_shown_with_their_source(tmp_path: Path) -> None:
    text = shown(
        take_inventory(DermNet(root=str(write_dermnet(tmp_path / "dermnet")), checkpoint=""))
    )

    assert "-15,545" in text
    assert "commonly quoted, not confirmed" in text


def test_pictures_in_memory_and_datasets_without_published_counts_do_too() -> None:
    inventory = take_inventory(Digits(checkpoint=""), ["test"])

    assert inventory.counts["test"].total() == 359
    assert (inventory.files, inventory.comparisons, inventory.copies) == (0, (), ())


class Listed(MLLMDataModule):
    """A user's own."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__(checkpoint="")
        self.listed = samples

    def load(self, split: Split) -> Sequence[Sample]:
        return self.listed


def talk(name: str, kind: str | None = None) -> Sample:
    return Sample(id=name, conversation=[Turn("user", "?"), Turn("assistant", "!")], kind=kind)


def test_conversations_are_counted_by_kind() -> None:
    inventory = take_inventory(
        Listed([talk("a"), talk("b", "count"), talk("c", "count")]), ["train"]
    )

    assert inventory.counts == {"train": {"(no label)": 1, "count": 2}}


def test_names_are_no_markup() -> None:
    assert "[red]" in shown(take_inventory(Listed([talk("a", "[red]")]), ["train"]))


class TestErrors:
    def test_an_image_that_is_broken(self, plantdoc: PlantDoc) -> None:
        (plantdoc.root / "test" / PLANTDOC[0] / "0.png").write_bytes(b"")

        with pytest.raises(
            DataError, match=r"(?s)1 of 23 image files can't be used:.*0\.png: has zero bytes"
        ):
            take_inventory(plantdoc)

    def test_a_class_without_training_samples(self, plantdoc: PlantDoc) -> None:
        (plantdoc.root / "test" / "Peach leaf").mkdir()
        picture(1).save(plantdoc.root / "test" / "Peach leaf" / "0.png")

        with pytest.raises(DataError, match=r"The label 'Peach leaf' .* is none of the 4 classes"):
            take_inventory(plantdoc)

    def test_an_id_that_occurs_twice(self) -> None:
        with pytest.raises(DataError, match="The id 'a' occurs 2 times in the 'train' split"):
            take_inventory(Listed([talk("a"), talk("a")]))

    def test_a_split_without_samples(self, plantdoc: PlantDoc) -> None:
        plantdoc.val_fraction = 0

        with pytest.raises(
            DataError, match=r"The 'val' split of PlantDoc is empty.* leave it out with --splits"
        ):
            take_inventory(plantdoc)
        assert take_inventory(plantdoc, ["train", "test"]).counts["train"].total() == 17
