import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mllm.data import HFColumns, HFDataset
from lightning_mllm.data.datasets.hf_rows import HFSamples
from lightning_mllm.data.datasets.inventory import take_inventory
from lightning_mllm.errors import ConfigError, DataError
from tests.support.datamodule_contract import DataModuleContract
from tests.support.hf_tables import (
    classes,
    private_caches,
    questions,
    save_splits,
    stored_picture,
    table,
)


@pytest.fixture(autouse=True, scope="module")
def _private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with private_caches(tmp_path_factory.mktemp("caches")):
        yield


def make(path: str | Path, **options: Any) -> HFDataset:
    return HFDataset(path=str(path), **{"checkpoint": "unused", **options})


class TestClassesInASingleTable(DataModuleContract):
    def write(self, folder: Path) -> None:
        classes(0, 20).to_parquet(folder / "beans.parquet")

    def make(self, checkpoint: str, **options: Any) -> HFDataset:
        return make(self.folder / "beans.parquet", checkpoint=checkpoint, **options)

    def test_classes_are_those_of_the_column(self, module: HFDataset) -> None:
        assert module.label_set is not None
        assert module.label_set.names == ("black cat", "dog")
        assert {sample.label for sample in module.samples["train"]} == {"black cat", "dog"}

    def test_a_tenth_is_drawn_for_validation_and_test(self, module: HFDataset) -> None:
        counts = {split: len(samples) for split, samples in module.samples.items()}
        assert counts == {"train": 16, "val": 2, "test": 2}


class TestQuestionsInSplits(DataModuleContract):
    def write(self, folder: Path) -> None:
        save_splits(
            folder / "vqa",
            train=questions(0, 9, kind=["count"] * 9),
            validation=questions(30, 3, kind=["colour"] * 3),
            test=questions(40, 6, kind=["count", "colour", None] * 2),
        )

    def make(self, checkpoint: str, **options: Any) -> HFDataset:
        return make(self.folder / "vqa", checkpoint=checkpoint, **options)

    def test_rows_without_an_id_are_named_by_split_and_number(self, module: HFDataset) -> None:
        assert module.samples["val"][2].id == "validation-2"

    def test_kinds_are_known(self, module: HFDataset) -> None:
        assert module.kinds == ("colour", "count")


class TestConversations(DataModuleContract):
    def write(self, folder: Path) -> None:
        import datasets

        def talk(*texts: str) -> list[dict[str, str]]:
            roles = ("user", "assistant") * len(texts)
            pairs = zip(roles, texts, strict=False)
            return [{"role": role, "content": text} for role, text in pairs]

        def rows(start: int, count: int) -> Any:
            kinds = [
                (2, talk("Both?", "yes", "Why?", "so")),
                (1, talk("What is <image>, then?", "it")),
                (0, talk("Any text?", "no")),
            ]
            chosen = [kinds[k % 3] for k in range(count)]
            pictures: list[Any] = []
            for number, (images, _) in enumerate(chosen):
                pictures.append(
                    [stored_picture(start + 3 * number + k, "JPEG") for k in range(images)]
                )
            columns: dict[str, Sequence[Any]] = {
                "images": pictures,
                "messages": [turns for _, turns in chosen],
                "id": [f"{start}-{k}" for k in range(count)],
            }
            return table(columns, images=datasets.List(datasets.Value("binary")))

        save_splits(folder / "talk", train=rows(0, 9), test=rows(100, 3))

    def make(self, checkpoint: str, **options: Any) -> HFDataset:
        return make(self.folder / "talk", checkpoint=checkpoint, **options)

    def test_pictures_stand_first_or_where_the_text_says(self, module: HFDataset) -> None:
        first, second, third = (module.samples["test"][k] for k in range(3))

        assert (first.conversation[0].images, first.conversation[0].places) == (2, ())
        assert (second.conversation[0].images, second.conversation[0].places) == (1, (8,))
        assert (len(third.images), third.picture) == (0, None)
        assert first.picture == ", ".join(str(image.content) for image in first.images)  # type: ignore[union-attr]


def test_an_interrupted_epoch_goes_on_bit_for_bit_also_in_workers(
    tiny_llava: str, tmp_path: Path
) -> None:
    path = save_splits(tmp_path / "beans", train=questions(0, 12), validation=questions(20, 1))

    def loaded(module: HFDataset, state: dict[str, Any] | None = None) -> list[Any]:
        module.setup("fit")
        loader = module.train_dataloader()
        if state:
            loader.load_state_dict(state)
        return [loader, iter(loader)]

    loader, batches = loaded(make(path, checkpoint=tiny_llava, batch_size=4))
    next(batches), next(batches)
    state = loader.state_dict()
    rest = list(batches)
    _, resumed = loaded(make(path, checkpoint=tiny_llava, batch_size=4, num_workers=2), state)

    for batch, again in zip(rest, resumed, strict=True):
        assert batch.sample_ids == again.sample_ids
        assert torch.equal(batch.input_ids, again.input_ids)
        for image, same in zip(batch.images, again.images, strict=True):
            assert torch.equal(image["pixel_values"], same["pixel_values"])


def test_bad_rows_are_named_by_split_row_and_column(tmp_path: Path) -> None:
    import datasets

    good = stored_picture(1)
    pictures = [good, good[:-30], b"<!doctype html>", good, good, good]
    rows = table(
        {
            "image": [{"bytes": each, "path": None} for each in pictures],
            "question": ["What?", "What?", "What?", None, "<image> <image>?", "What?"],
            "answer": ["a", "b", "c", "d", "e", ""],
        },
        image=datasets.Image(),
    )
    path = save_splits(tmp_path / "vqa", train=rows, validation=rows.select([0]), test=rows)

    with pytest.raises(DataError) as caught:
        take_inventory(make(path), ["train"])

    where = f"{path}, split 'train', row"
    for said in (
        f"{where} 1, column 'image': is truncated within its part 'IDAT'",
        f"{where} 2, column 'image': is not an image but a web page (HTML)",
        f"{where} 3, column 'question': is empty; a question was expected.",
        f"{where} 4, column 'question': 2 <image> placeholders, but 1 pictures.",
        f"{where} 5, column 'answer': is empty; an answer was expected.",
    ):
        assert said in str(caught.value)
    left = take_inventory(make(path, on_bad_row="skip"), ["train"])
    assert (left.counts["train"].total(), left.left_out) == (1, 5)


def test_the_first_row_may_be_bad(tiny_llava: str, tmp_path: Path) -> None:
    rows = questions(0, 8, answer=["", "", "c", "d", "", "f", "g", "h"])
    path = save_splits(tmp_path / "vqa", train=rows, validation=questions(8, 4))

    with pytest.raises(DataError, match=r"3 rows can't be used"):
        make(path, checkpoint=tiny_llava).setup("fit")
    module = make(path, checkpoint=tiny_llava, on_bad_row="skip", batch_size=5)
    module.setup("fit")

    assert [sample.id for sample in module.samples["train"]] == [
        f"train-{row}" for row in (2, 3, 5, 6, 7)
    ]
    assert module.left_out_metrics("train") == {"bad_rows/train": 3.0}


def test_labels_that_are_not_published_are_bad_rows(tmp_path: Path) -> None:
    rows = classes(0, 4)
    hidden = rows.select(range(2)).to_dict() | {"label": [-1, 1]}
    import datasets

    test = datasets.Dataset.from_dict(hidden, features=rows.features)
    path = save_splits(tmp_path / "beans", train=rows, validation=rows.select([0]), test=test)

    with pytest.raises(DataError, match="row 0, column 'label': -1 is none of the 2 classes; in a"):
        take_inventory(make(path), ["test"])


def test_a_class_without_a_picture_is_a_bad_row(tmp_path: Path) -> None:
    rows = classes(0, 3)
    pictures = [{"bytes": stored_picture(0), "path": None}, None, None]
    train = rows.remove_columns("image").add_column(
        "image", pictures, feature=rows.features["image"]
    )
    path = save_splits(tmp_path / "beans", train=train, validation=rows)

    with pytest.raises(DataError, match="row 1, column 'image': is empty; a picture was expected"):
        take_inventory(make(path), ["train"])


def test_pictures_in_folders_that_the_library_lists_are_files(tmp_path: Path) -> None:
    for number, name in enumerate(("train/cat/0.png", "train/dog/1.png", "test/dog/2.png")):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(stored_picture(number))

    (sample,) = make(tmp_path / "photos").load("test")

    assert sample.images == [tmp_path / "photos" / "test/dog/2.png"]
    assert (sample.label, sample.picture) == ("dog", "test/dog/2.png")


def test_a_conversation_names_the_column_that_it_is_from(tmp_path: Path) -> None:
    talk = [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]
    rows = table({"id": ["a"], "talk": [talk]})
    path = save_splits(tmp_path / "talk", train=rows)

    with pytest.raises(DataError, match=r"split 'train', row 0, column 'talk\[0\]': is from 'gpt'"):
        take_inventory(make(path, columns=HFColumns(image="")), ["train"])


def test_rows_of_equal_pictures_stay_in_one_split(tmp_path: Path) -> None:
    rows = questions(
        0, 40, image=[{"bytes": stored_picture(k // 4), "path": None} for k in range(40)]
    )
    path = save_splits(tmp_path / "vqa", train=rows)

    module = make(path, val_fraction=0.2, test_fraction=0.2)
    shown = {split: {sample.picture for sample in module.load(split)} for split in module.splits}

    assert {split: len(pictures) for split, pictures in shown.items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    assert not shown["train"] & (shown["val"] | shown["test"])
    again = make(path, val_fraction=0.2, test_fraction=0.2, seed=1)
    assert {sample.picture for sample in again.load("val")} != shown["val"]


def test_pictures_of_training_in_another_split_are_warned_of(
    tiny_llava: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_splits(tmp_path / "b", train=classes(0, 8), validation=classes(7, 2))
    module = make(path, checkpoint=tiny_llava)

    with caplog.at_level(logging.WARNING):
        module.setup("fit")

    assert (
        "1 of the 2 samples of the 'val' split have a picture that the 'train' split" in caplog.text
    )
    found = take_inventory(make(path), ["train", "val"])
    assert found.files == 9
    assert [each[0].sample_id for each in found.across_splits] == ["train-7"]


def test_resuming_with_other_rows_is_refused(tiny_llava: str, tmp_path: Path) -> None:
    def set_up(start: int) -> HFDataset:
        path = save_splits(tmp_path / str(start), train=classes(start, 8))
        module = make(path, checkpoint=tiny_llava, batch_size=4)
        module.setup("fit")
        module.train_dataloader()
        return module

    class FittingTrainer:
        class state:
            fn = TrainerFn.FITTING

    one, other = set_up(0), set_up(50)
    state = one.state_dict()
    for module in (one, other):
        module.trainer = FittingTrainer()  # type: ignore[assignment]

    one.load_state_dict(state)
    with pytest.raises(ConfigError, match="was trained on other rows: split 'train'"):
        other.load_state_dict(state)
    assert one.describe_inputs()["data"]["tables"] == state["tables"]


def test_of_several_answers_the_most_frequent_is_learnt(tmp_path: Path) -> None:
    rows = questions(0, 2, answer=[["two", "2", "2"], ["b", "", "a", "a", "b"]])
    module = make(save_splits(tmp_path / "vqa", train=rows), val_fraction=0, test_fraction=0)

    assert [sample.conversation[-1].text for sample in module.load("train")] == ["2", "b"]


def test_all_rows_can_have_one_question_and_one_kind(tmp_path: Path) -> None:
    rows = questions(0, 3).remove_columns("question").rename_column("answer", "caption")
    path = save_splits(tmp_path / "captions", train=rows)
    told = {"question": "Describe it.", "kind": "caption", "columns": HFColumns(answer="caption")}

    sample = make(path, **told, val_fraction=0, test_fraction=0).load("train")[1]

    assert [turn.text for turn in sample.conversation] == ["Describe it.", "it is 1"]
    assert sample.kind == "caption"
    with pytest.raises(ConfigError, match="Give one of them"):
        make(path, question="Describe it.", columns=HFColumns(question="question"))


def test_paths_are_relative_to_the_root_and_may_not_leave_it(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(stored_picture(1))
    (tmp_path / "b.png").write_bytes(stored_picture(2))
    rows = table({"image": ["a.png", "a.png"], "question": ["x", "y"], "answer": ["1", "2"]})
    rows.to_json(tmp_path / "rows.jsonl")
    module = make(tmp_path / "rows.jsonl", image_root=str(tmp_path / "files"))

    sample = module.load("train")[0]

    assert sample.images == [tmp_path / "files" / "a.png"]
    assert sample.picture == "a.png"
    table({"image": ["../b.png"], "question": ["x"], "answer": ["1"]}).to_json(
        tmp_path / "out.jsonl"
    )
    with pytest.raises(DataError, match=r"row 0, column 'image': the image '../b\.png' leads out"):
        list(make(tmp_path / "out.jsonl", image_root=str(tmp_path / "files")).load("train"))


def test_a_repeated_id_gets_the_number_of_its_row(tmp_path: Path) -> None:
    rows = questions(0, 4, id=["a", "b", "a", ""])
    module = make(save_splits(tmp_path / "vqa", train=rows), val_fraction=0, test_fraction=0)

    assert [sample.id for sample in module.load("train")] == ["a", "b", "a#2", "train-3"]


def test_an_absent_split_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = save_splits(tmp_path / "b", train=classes(0, 4), validation=classes(4, 4))

    with pytest.raises(
        DataError, match=r"has no 'test' split, only 'train', 'validation'\. Set `test`"
    ):
        make(path).load("test")


def test_samples_keep_no_objects_of_their_rows(tmp_path: Path) -> None:
    path = save_splits(tmp_path / "b", train=classes(0, 300), validation=classes(0, 1))

    samples = make(path).load("train")

    assert isinstance(samples, HFSamples)
    columns: Any = samples.columns.values()
    assert sum(column.nbytes for column in columns) == 8 * 300
    assert samples.digest() == make(path).load("train").digest()  # type: ignore[attr-defined]
    assert samples.digest() != samples[:299].digest()
    assert samples[:4].list_labels() == ["black cat", "dog"]
    assert samples.find_examples() == [0, 1]


def test_samples_are_made_again_from_their_columns(tmp_path: Path) -> None:
    path = save_splits(tmp_path / "b", train=classes(0, 20), validation=classes(20, 4))
    one, other = make(path), make(path)
    part = one.load("train")[3:9]

    again = other.restore("train", part.columns)  # type: ignore[attr-defined]

    assert [sample.id for sample in again] == [f"train-{row}" for row in range(3, 9)]
    assert one.describe_source(["val"]) == other.describe_source(["val"])
    assert set(one.describe_source(["val"])) == {"source", "images", "train", "validation"}
    by_label = make(path, columns=HFColumns(id=""), question=None)
    assert by_label.describe_source(["val"]) == one.describe_source(["val"])


def test_a_cache_that_can_not_be_written_is_said_and_the_rows_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_splits(tmp_path / "b", train=classes(0, 4), validation=classes(4, 1))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    assert len(list(make(path).load("train"))) == 4
    assert "Set XDG_CACHE_HOME" in caplog.text


def test_further_columns_go_along_with_a_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    caplog.set_level("INFO")
    sites = datasets.ClassLabel(names=["leg", "arm"])
    rows = classes(0, 12, age=[k + 0.5 for k in range(12)], site=[k % 2 for k in range(12)])
    path = save_splits(tmp_path / "table", train=rows.cast_column("site", sites))

    module = make(path, fields=["age", "site"], columns=HFColumns(label="label"))

    found = module.load("train")
    assert len(found) > 5
    assert all(each.fields["site"] in ("leg", "arm") for each in found)
    assert all(isinstance(each.fields["age"], float) for each in found)
    assert "fields: age, site" in caplog.text
    with pytest.raises(DataError, match=r"`fields` names 'ages', but there is no such column.*age"):
        make(path, fields=["ages"], columns=HFColumns(label="label")).load("train")
    with pytest.raises(DataError, match="`fields` names 'image', which has the type image"):
        make(path, fields=["image"], columns=HFColumns(label="label")).load("train")
