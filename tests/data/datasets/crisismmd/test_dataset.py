import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.data import CrisisMMD, Split
from lightning_mllm.data.datasets.crisismmd.dataset import FOUR_CLASSES
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample
from tests.support.datamodule_contract import DataModuleContract
from tests.support.published_datasets import HUMANITARIAN, TSV, entry, write_crisismmd, write_tsv

ANNOTATION = ("tweet_id", "image_id", "image_human", "image_human_conf", "tweet_text", "image_path")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_crisismmd(tmp_path / "CrisisMMD_v2.0")


def load(root: Path, split: Split = "train", **options: Any) -> list[Sample]:
    return list(CrisisMMD(root=str(root), checkpoint="unused", **options).load(split))


class TestCrisisMMD(DataModuleContract):
    def write(self, folder: Path) -> None:
        write_crisismmd(folder)

    def make(self, checkpoint: str, **options: Any) -> CrisisMMD:
        return CrisisMMD(root=str(self.folder), checkpoint=checkpoint, **options)


def test_four_classes_by_default_and_what_is_dropped_is_said(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        samples = load(root)

    assert Counter(sample.label for sample in samples) == {
        "affected individuals": 4,
        "infrastructure and utility damage": 4,
        "rescue volunteering or donation effort": 4,
        "vehicle damage": 4,
    }
    assert (
        "train.tsv: 16 of 20 images are used; 4 are dropped by their label, 0 for disagreement"
        in caplog.text
    )


def test_every_label_of_version_2_has_its_place() -> None:
    assert set(FOUR_CLASSES) == {*HUMANITARIAN, "missing_or_found_people"}
    assert len({name for name in FOUR_CLASSES.values() if name is not None}) == 4


def test_ids_are_image_ids_and_images_lie_below_the_root(root: Path) -> None:
    first = load(root)[0]

    assert first.id == "900_0"
    assert first.images == [root / "data_image/hurricane_harvey/8_9_2017/900_0.jpg"]


def test_column_and_classes_are_options(root: Path) -> None:
    rows = [
        entry("1", "vehicle_damage", label_text="not_humanitarian"),
        entry("2", "vehicle_damage"),
    ]
    write_tsv(root, "train", rows)

    def labels(**options: Any) -> list[str | None]:
        return [sample.label for sample in load(root, **options)]

    classes = {"vehicle_damage": "damage", "not_humanitarian": "other"}
    assert labels(classes=classes) == ["damage", "damage"]
    assert labels(classes=classes, label_column="label_text") == ["other", "damage"]
    assert labels(classes=classes, agrees_with="label_text") == ["damage"]


def test_the_annotation_files_serve_too_with_their_confidence(root: Path) -> None:
    rows = [
        {
            **dict.fromkeys(ANNOTATION, ""),
            **{
                "tweet_id": tweet,
                "image_id": f"{tweet}_0",
                "image_path": f"data_image/a/{tweet}_0.jpg",
            },
            **{"image_human": label, "image_human_conf": confidence},
        }
        for tweet, label, confidence in [
            ("1", "vehicle_damage", "1.0"),
            ("2", "vehicle_damage", "0.6"),
            ("3", "", ""),
        ]
    ]
    file = write_tsv(root, "train", rows, ANNOTATION, image="image_path")
    options: dict[str, Any] = {
        "train": str(file.relative_to(root)),
        "label_column": "image_human",
        "image_column": "image_path",
    }
    classes = {**FOUR_CLASSES, "": None}  # of tweets that are not informative

    def ids(**more: Any) -> list[str]:
        return [sample.id for sample in load(root, **options, classes=classes, **more)]

    assert ids() == ["1_0", "2_0"]
    assert ids(confidence_column="image_human_conf", min_confidence=0.66) == ["1_0"]


def test_a_confidence_needs_its_column(root: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"min_confidence is 0\.7, but there is no confidence_column"
    ):
        load(root, min_confidence=0.7)


def test_labels_without_a_class_are_counted_not_dropped(root: Path) -> None:
    write_tsv(
        root, "train", [entry(str(k), label) for k, label in enumerate(["flood", "flood", "fire"])]
    )

    with pytest.raises(
        DataError,
        match=r"train.tsv, column 'label_image': .* 'flood' \(2\), 'fire' \(1\)\. Give each",
    ):
        load(root)


def test_several_images_of_a_tweet_are_several_samples(root: Path) -> None:
    write_tsv(root, "train", [entry("7", "vehicle_damage", k) for k in range(3)])

    assert [sample.id for sample in load(root)] == ["7_0", "7_1", "7_2"]


def test_rows_that_repeat_an_image_are_merged_and_counted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tsv(
        root, "train", [entry("7", "vehicle_damage"), entry("7", "vehicle_damage", tweet_text="RT")]
    )

    with caplog.at_level(logging.WARNING):
        assert len(load(root)) == 1

    assert "1 rows of" in caplog.text
    assert "repeat an earlier one: merged" in caplog.text


def test_a_tweet_in_two_splits_is_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tsv(root, "test", [entry("900", "vehicle_damage", 1)])

    with caplog.at_level(logging.WARNING):
        load(root, "test")

    assert "1 tweets have images in both" in caplog.text
    assert "(e.g. 900)" in caplog.text


def test_cells_may_follow_the_last_column_if_they_are_empty(root: Path) -> None:
    file = root / TSV.format("train")
    file.write_text(file.read_text().replace("Positive\n", "Positive\t\r\n"))

    assert len(load(root)) == 16


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "missing image": ({"image": "nowhere.jpg"}, "the image .*nowhere.jpg does not exist"),
    "out of the root": ({"image": "../secret.jpg"}, "the image '../secret.jpg' leads out of"),
    "absolute path": ({"image": "/etc/hostname"}, "the image '/etc/hostname' leads out of"),
    "a tab in the text": ({"tweet_text": "a\tb"}, "10 cells, but the header has 9"),
    "a line break in the text": ({"tweet_text": "a\nb"}, "4 cells, but the header has 9"),
    "another label": ({"image_id": "7_0"}, "the image '7_0' is in row 2 with another annotation"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_an_error_names_file_and_row(root: Path, case: str) -> None:
    changes, message = BAD_ROWS[case]
    (root.parent / "secret.jpg").touch()
    write_tsv(
        root, "train", [entry("7", "vehicle_damage"), entry("8", "not_humanitarian", **changes)]
    )

    with pytest.raises(DataError, match=rf"train\.tsv, row 3: {message}"):
        load(root)


def test_a_confidence_that_is_no_number(root: Path) -> None:
    write_tsv(root, "train", [entry("7", "vehicle_damage")])

    with pytest.raises(
        DataError, match=r"row 2: 'Positive' in the column 'label_text_image' is not a number"
    ):
        load(root, confidence_column="label_text_image")


@pytest.mark.parametrize(
    "option", ["label_column", "image_column", "agrees_with", "confidence_column"]
)
def test_a_column_that_is_not_there(root: Path, option: str) -> None:
    with pytest.raises(
        DataError,
        match=r"row 1: there is no column 'lable'; the columns are event_name, tweet_id, ",
    ):
        CrisisMMD(root=str(root), checkpoint="unused", **{option: "lable"}).load("train")  # type: ignore[arg-type]


def test_a_split_file_that_is_not_there(root: Path) -> None:
    (root / TSV.format("train")).unlink()

    with pytest.raises(DataError, match=r"does not exist\. Correct `root`, or the path\.$"):
        load(root)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"gone does not exist; set `root` to that of CrisisMMD_v2\.0"
    ):
        load(tmp_path / "gone")
