import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.data import LlavaJson
from lightning_mllm.data.datasets import llava_samples
from lightning_mllm.errors import DataError
from lightning_mllm.types import Segment
from tests.data.conftest import picture
from tests.support.datamodule_contract import DataModuleContract

Row = dict[str, Any]


def row(name: str = "a", image: Any = "a.png", *values: str) -> Row:
    values = values or ("<image>\nWhat is it?", "two")
    roles = ("human", "gpt") * len(values)
    turns = [{"from": role, "value": value} for role, value in zip(roles, values, strict=False)]
    return {"id": name, "conversations": turns, **({} if image is None else {"image": image})}


def write_images(folder: Path) -> Path:
    images = folder / "images"
    (images / "sub").mkdir(parents=True)
    picture(30, 30).save(images / "a.png")
    picture(60, 20).save(images / "sub" / "b.png")
    return images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def write(path: Path, rows: object) -> str:
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return str(path)


def load(images: Path, rows: object, name: str = "train.json") -> list[Any]:
    file = write(images.parent / name, rows)
    module = LlavaJson(train=file, val=file, image_root=str(images), checkpoint="unused")
    return list(module.load("train"))


class TestLlavaJson(DataModuleContract):
    def write(self, folder: Path) -> None:
        kinds: list[Callable[[str], Row]] = [
            row,
            lambda name: (
                row(name, ["a.png", "sub/b.png"], "<image><image>Which?", "a", "Why? <image>", "b")
                | {"image": ["a.png", "sub/b.png", "a.png"]}
            ),
            lambda name: row(name, None, "Is there any text?", "no"),
        ]
        write_images(folder)
        write(folder / "train.json", [kinds[k % 3](f"row-{k}") for k in range(24)])
        write(folder / "test.json", [kinds[k % 3](f"test-{k}") for k in range(5)])

    def make(self, checkpoint: str, **options: Any) -> LlavaJson:
        return LlavaJson(
            train=str(self.folder / "train.json"),
            test=str(self.folder / "test.json"),
            image_root=str(self.folder / "images"),
            checkpoint=checkpoint,
            **options,
        )

    def test_images_and_text_alone_share_batches_only_at_the_end(self, tiny_llava: str) -> None:
        module = self.make(tiny_llava, batch_size=4)
        module.setup("fit")
        kinds = [batch.spans[Segment.IMAGE].any(dim=1) for batch in module.train_dataloader()]

        assert all(kind.all() or not kind.any() for kind in kinds[:-2])


def test_rows_about_the_same_images_are_about_one_picture(images: Path) -> None:
    both = ["a.png", "sub/b.png"]
    rows = [
        row("a"),
        row("b", ["a.png"]),
        row("c", both, "<image><image>?", "x"),
        row("d", None, "x", "y"),
    ]

    pictures = [sample.picture for sample in load(images, [*rows, row("e", [], "x", "y")])]

    assert pictures == ["a.png", "a.png", "a.png, sub/b.png", None, None]


def test_one_row_per_line_is_read_too(images: Path) -> None:
    lines = "\n".join(json.dumps(row(str(k))) for k in range(3))
    assert [sample.id for sample in load(images, lines, "train.jsonl")] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"train\.jsonl, row 2: malformed JSON"):
        load(images, json.dumps(row()) + '\n{"id": ', "train.jsonl")


def test_rows_without_an_id_of_their_own_are_named_by_number(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nameless = {"conversations": row()["conversations"], "image": "a.png"}
    rows = [row("a"), row("a"), {**nameless}, {**nameless, "id": ""}, row("3"), row("b")]

    with caplog.at_level(logging.WARNING):
        samples = load(images, rows)

    assert [sample.id for sample in samples] == ["a", "a#2", "3", "4", "3#5", "b"]
    assert len(caplog.records) == 1
    assert "4 rows of" in caplog.text


def test_a_file_is_parsed_once_for_training_and_validation(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(str(k), None, "Is there any?", "no") for k in range(5)]
    module = LlavaJson(train=write(images.parent / "train.json", rows), checkpoint="unused")
    module.image_root = str(images)
    first = module.load("train")
    monkeypatch.setattr(llava_samples, "find_json_rows", None)

    assert list(module.load("train")) == list(first)
    assert len(module.load("val")) == 1


def test_an_error_late_in_a_large_file_is_located(images: Path) -> None:
    text = "[" + ",\n".join(json.dumps(row(str(k))) for k in range(50_000)) + ",\n{bad]"
    with pytest.raises(DataError, match="row 50001: malformed JSON"):
        load(images, text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('[{"id": 1}, {"id": 2},\n {"id" 3}]', 3),
        ('[{"id": 1}', 2),
        ("not json", 1),
        ('[{"id": "x}]', 1),
    ],
)
def test_malformed_json_is_located(images: Path, text: str, number: int) -> None:
    with pytest.raises(DataError, match=rf"train\.json, row {number}: malformed JSON"):
        load(images, text)


def test_a_file_must_hold_a_list(images: Path) -> None:
    with pytest.raises(DataError, match="holds a dict; a list of rows was expected"):
        load(images, {"id": 1})


def test_missing_files_and_splits_are_named(images: Path, tmp_path: Path) -> None:
    module = LlavaJson(train=str(tmp_path / "gone.json"), checkpoint="unused")
    with pytest.raises(DataError, match=r"gone\.json does not exist\. Correct the path\.$"):
        module.load("train")
    with pytest.raises(DataError, match="no 'test' split: set `test`"):
        module.load("test")
    file = write(tmp_path / "train.json", [row()])
    with pytest.raises(DataError, match=r"nowhere is not a folder\. Set `image_root`"):
        LlavaJson(train=file, image_root=str(tmp_path / "nowhere"), checkpoint="unused").load(
            "train"
        )


def test_an_empty_file_is_an_empty_split(images: Path, tiny_llava: str) -> None:
    file = write(images.parent / "train.json", [])
    with pytest.raises(DataError, match="The 'train' split of LlavaJson is empty"):
        LlavaJson(train=file, val=file, checkpoint=tiny_llava).setup("fit")


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_share_a_picture_share_a_split(images: Path, seed: int) -> None:
    for k in range(20):
        picture(20 + k, 20).save(images / f"{k}.png")
    (images / "copy.png").write_bytes((images / "2.png").read_bytes())
    linked = [row(f"{k}{turn}", f"{k}.png") for k in range(14) for turn in "abc"]
    linked += [
        row(f"both{k}", [f"{k}.png", f"./{k + 1}.png"], "<image><image>?", "a")
        for k in range(14, 19)
    ]
    linked += [row("copy", "copy.png")]
    rows = [*linked, *(row(f"text{k}", None, "Is there any?", "no") for k in range(4))]
    module = LlavaJson(
        train=write(images.parent / "train.json", rows),
        image_root=str(images),
        checkpoint="",
        val_fraction=0.2,
        seed=seed,
    )

    parts = [module.load("train"), module.load("val")]

    contents: list[set[bytes]] = []
    for part in parts:
        files: list[Any] = [image for sample in part for image in sample.images]
        contents.append({file.read_bytes() for file in files})
    train, val = contents
    assert len(val) > 1
    assert not train & val
    assert [len(part) for part in parts] == [42, 10]
    assert sorted(sample.id for part in parts for sample in part) == sorted(
        str(each["id"]) for each in rows
    )


def test_rows_of_one_picture_can_not_be_split(images: Path) -> None:
    module = LlavaJson(
        train=write(images / "train.json", [row(str(k)) for k in range(4)]),
        image_root=str(images),
        checkpoint="",
    )

    assert len(module.load("train")) == 4  # of which a test makes no use
    with pytest.raises(
        DataError,
        match=r"All 4 rows of .*train\.json are linked by the pictures.* Give a file as `val`",
    ):
        module.load("val")


def test_files_of_one_name_in_two_folders_are_two_pictures(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        picture().save(tmp_path / split / "1.png")
    files = {
        split: write(tmp_path / split / "rows.json", [row("a", "1.png")])
        for split in ("train", "val")
    }

    module = LlavaJson(**files, checkpoint="")  # type: ignore[arg-type]

    assert [module.load(split)[0].picture for split in ("train", "val")] == [
        "train/1.png",
        "val/1.png",
    ]


def test_further_fields_go_along_with_a_sample(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row("a") | {"age": 61, "site": "leg"}, row("b") | {"age": 7.5, "site": "arm"}]
    file = write(images.parent / "fields.json", rows)

    module = LlavaJson(
        train=file, val=file, image_root=str(images), checkpoint="unused", fields=["age", "site"]
    )

    assert [dict(each.fields) for each in module.load("train")] == [
        {"age": 61, "site": "leg"},
        {"age": 7.5, "site": "arm"},
    ]
    assert "not read" not in caplog.text
    assert module.describe_source(["train"]) != LlavaJson(
        train=file, val=file, image_root=str(images), checkpoint="unused"
    ).describe_source(["train"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"age": 1}, r"row 2, field 'site': is missing or empty, but `fields` names it"),
        ({"age": 1, "site": ["leg"]}, r"row 2, field 'site': is a list; a field of a sample is"),
    ],
)
def test_a_row_without_a_field_that_is_asked_for_is_named(
    fields: Row, message: str, images: Path
) -> None:
    rows = [row("a") | {"age": 61, "site": "leg"}, row("b") | fields]
    file = write(images.parent / "fields.json", rows)
    module = LlavaJson(
        train=file, val=file, image_root=str(images), checkpoint="unused", fields=["age", "site"]
    )

    with pytest.raises(DataError, match=message):
        module.load("train")
