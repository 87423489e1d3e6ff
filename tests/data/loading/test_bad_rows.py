"""Rows that can't be used: all in one message, or left out and counted."""

import csv
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from lightning_mllm.data import (
    DTD,
    CrisisMMD,
    DermNet,
    GQATasks,
    ImageFolder,
    LlavaJson,
    MLLMDataModule,
    PlantDoc,
)
from lightning_mllm.data.datasets.inventory import take_inventory
from lightning_mllm.data.loading.bad_rows import BadRows
from lightning_mllm.data.loading.full_check import run_full_check
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Box, LazyImage, Options, Sample, Turn
from tests.data.conftest import picture
from tests.data.datasets.gqa.test_tasks import JAR, write
from tests.data.loading.test_datamodule import OTHER, TRAIN, Memory
from tests.support.command_line import conversation, write_llava_json
from tests.support.published_datasets import (
    DERMNET,
    PLANTDOC,
    TSV,
    write_crisismmd,
    write_dermnet,
    write_dtd,
    write_plantdoc,
)

TALK = [
    Sample(id=str(k), conversation=[Turn("user", "Which?"), Turn("assistant", "two")])
    for k in range(6)
]
LONE = "half a \ud83d"


def said(name: str, question: str = "Which?", answer: str = "two", **fields: Any) -> Sample:
    return Sample(
        id=name, conversation=[Turn("user", question), Turn("assistant", answer)], **fields
    )


def refused(module: MLLMDataModule, stage: str = "fit") -> str:
    with pytest.raises(DataError) as caught:
        module.setup(stage)
    return str(caught.value)


class TestOneMessage:
    def test_every_check_of_labelled_samples_adds_to_it(
        self, tiny_llava: str, tmp_path: Path
    ) -> None:
        (tmp_path / "empty.jpg").touch()
        train = [
            *TRAIN,
            replace(OTHER[0], id="none", label=None),
            replace(OTHER[0], id="train-3"),
            replace(OTHER[0], id="boxed", boxes=[Box(0, 0, -1, 1)]),
            replace(OTHER[0], id="broken", images=[tmp_path / "empty.jpg"]),
            replace(OTHER[0], id=LONE),
            replace(OTHER[0], id="text", images=["a.jpg"]),  # type: ignore[list-item]
            "no sample",
        ]
        other = [
            *OTHER,
            replace(OTHER[0], id="other", label="seven"),
            replace(OTHER[0], id="kind", kind="colour"),
        ]

        message = refused(Memory(train, other, checkpoint=tiny_llava))  # type: ignore[arg-type]

        assert message.startswith(
            "9 rows can't be used (label: 2, sample: 2, text: 1, id: 1, boxes: 1, kind: 1, "
            "image file: 1):"
        )
        for part in (
            "'none'",
            "'train-3'",
            "'boxed'",
            "empty.jpg",
            r"ud83d",
            "'a.jpg'",
            "a str where",
            "seven",
        ):
            assert part in message

    def test_every_check_of_conversations_adds_to_it(self, tiny_llava: str) -> None:
        bad = [
            said("special", "What is <s> in HTML?"),
            said("long", answer="one two three " * 200),
            said("odd", "Is it " + LONE + "?"),
            said("options", "Red or blue?", options=Options("green", "blue")),
            said("empty", answer=" "),
            replace(TALK[0], id="backwards", conversation=TALK[0].conversation[::-1]),
            said("kinds", kind=" "),
        ]

        message = refused(
            Memory([*TALK, *bad[:-1]], [*TALK, bad[-1]], checkpoint=tiny_llava, max_length=300)
        )

        assert message.startswith(
            "7 rows can't be used (turns: 2, special token: 1, text: 1, options: 1, kind: 1, "
            "too long: 1):"
        )

    def test_of_many_that_are_alike_one_is_shown_and_all_are_counted(self, tiny_llava: str) -> None:
        train = [*TALK, *(said(f"bad-{k}", "<s>" if k % 2 else LONE) for k in range(30))]

        message = refused(Memory(train, TALK, checkpoint=tiny_llava))

        assert message.startswith("30 rows can't be used (text: 15, special token: 15):")
        assert len(message.splitlines()) == 3
        assert message.count("So it is with 14 others: 'bad-") == 2

    def test_of_many_others_the_first_twenty_are_shown_and_all_are_counted(self) -> None:
        rows = BadRows()
        for number in range(30):
            rows.add(DataError("bad" + "!" * number))

        assert rows.text().endswith("!" * 19 + "\n  ... and 10 more")
        assert len(rows.text().splitlines()) == 22

    def test_a_sample_that_cannot_be_made_is_one_of_them(self, tiny_llava: str) -> None:
        def make(index: int) -> Sample:
            return said(str(index), "?" * (10 // (index - 3)) if index < 5 else "<s>")

        message = refused(Memory(LazySamples(6, make), TALK, checkpoint=tiny_llava))

        assert "Sample number 3 (from 0) can't be made: ZeroDivisionError: " in message
        assert message.startswith("2 rows" if "'0'" not in message else "5 rows")

    def test_an_attempt_on_a_mended_dataset_knows_nothing_of_the_last(
        self, tiny_llava: str
    ) -> None:
        module = Memory([*TALK, said("bad", "<s>")], TALK, checkpoint=tiny_llava)
        refused(module)
        module.train = TALK
        module._first = None

        module.setup("fit")


def llava_json(folder: Path) -> MLLMDataModule:
    rows = [conversation(name) for name in "abcd"]
    rows[1]["image"] = ["sub/gone.png"]
    rows[3]["conversations"][1] = {"from": "gpt", "value": ""}
    return LlavaJson(train=str(write_llava_json(folder, rows)), checkpoint="unused")


def llava_lines(folder: Path) -> MLLMDataModule:
    lines = [
        json.dumps(conversation(name, images=0), ensure_ascii=False)
        for name in ("a\u2028b", "b", "c")
    ]
    (folder / "rows.jsonl").write_text(
        "\n".join([lines[0], lines[1][:-9], *lines[1:], "[]"]), encoding="utf-8"
    )
    return LlavaJson(train=str(folder / "rows.jsonl"), checkpoint="unused")


def crisismmd(folder: Path) -> MLLMDataModule:
    write_crisismmd(folder)
    file = folder / TSV.format("train")
    rows = file.read_text().splitlines()
    rows[2], rows[5] = rows[2].replace(".jpg", ".gone"), "one cell"
    file.write_text("\n".join(rows))
    return CrisisMMD(root=str(folder), checkpoint="unused")


def gqa(folder: Path) -> MLLMDataModule:
    Image.new("RGB", (60, 80)).save(folder / "2390560.jpg")
    rows = [
        JAR,
        {**JAR, "question_id": "1", "image_h": "81"},
        {**JAR, "question_id": "2", "answer": ""},
    ]
    return GQATasks(
        files=[write(folder, "ChooseAttr", *rows)], image_root=str(folder), checkpoint="unused"
    )


def dtd(folder: Path) -> MLLMDataModule:
    file = write_dtd(folder / "dtd") / "labels" / "train1.txt"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows, rows[0], "banded/gone.jpg"]))
    return DTD(root=str(folder / "dtd"), checkpoint="unused")


def two_bad_files(folder: Path) -> None:
    picture().save(folder / "a.tga")
    (folder / "b.heic").touch()


def dermnet(folder: Path) -> MLLMDataModule:
    two_bad_files(write_dermnet(folder / "d") / "train" / DERMNET[0])
    return DermNet(root=str(folder / "d"), checkpoint="unused")


def plantdoc(folder: Path) -> MLLMDataModule:
    two_bad_files(write_plantdoc(folder / "p") / "train" / PLANTDOC[0])
    return PlantDoc(root=str(folder / "p"), checkpoint="unused")


def image_folder(folder: Path) -> MLLMDataModule:
    plantdoc(folder)
    return ImageFolder(root=str(folder / "p"), checkpoint="unused")


READERS: dict[Callable[[Path], MLLMDataModule], tuple[Sequence[str], int]] = {
    llava_json: (["row 2, field 'image'", "row 4, field 'conversations[1]'"], 1),
    llava_lines: (["row 2: malformed JSON", "row 5: a list"], 2),
    crisismmd: (["row 3: the image", "row 6: 1 cells"], 0),
    gqa: (["row 3: the picture", "row 4: the column 'answer' is empty"], 1),
    dtd: (["is in row 1 already", "gone.jpg does not exist"], 12),
    image_folder: (
        ["a.tga: is a picture in the format TGA", "b.heic: is a picture in the format HEIC"],
        0,
    ),
    dermnet: (
        ["a.tga: is a picture in the format TGA", "b.heic: is a picture in the format HEIC"],
        0,
    ),
    plantdoc: (
        ["a.tga: is a picture in the format TGA", "b.heic: is a picture in the format HEIC"],
        0,
    ),
}


@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_each_reader_names_all_bad_rows_at_once(
    make: Callable[[Path], MLLMDataModule], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = make(tmp_path)
    parts, left = READERS[make]
    split = module.splits[0]

    with pytest.raises(DataError) as caught:
        module.load(split)
    assert all(part in str(caught.value) for part in parts), caught.value

    module.bad_rows = BadRows("skip")
    with caplog.at_level(logging.WARNING):
        samples = module.load(split)
    assert samples
    assert len(samples) == left or not left
    assert len(module.bad_rows) == len(parts)
    assert caplog.text.count("Left out") == 1


def test_a_reader_that_keeps_what_it_read_does_not_let_a_bad_row_pass_the_second_time(
    tmp_path: Path,
) -> None:
    module = crisismmd(tmp_path)

    for _ in range(2):
        with pytest.raises(DataError, match="row 6: 1 cells"), module.bad_rows.gather():
            module.load("train")


class TestLeavingOut:
    def test_the_others_are_all_there_and_in_order(self, tiny_llava: str) -> None:
        train = [
            said("bad", "<s>"),
            *TALK[:3],
            said("1"),
            *TALK[3:],
            said("long", answer="word " * 400),
        ]
        module = Memory(train, TALK, checkpoint=tiny_llava, on_bad_row="skip", max_length=300)

        module.setup("fit")

        assert [sample.id for sample in module.samples["train"]] == [sample.id for sample in TALK]
        batches = list(module.train_dataloader())
        assert sorted(name for batch in batches for name in batch.sample_ids) == [
            sample.id for sample in TALK
        ]

    def test_a_split_of_which_nothing_is_left_is_refused(self, tiny_llava: str) -> None:
        module = Memory(TALK, [said("bad", "<s>")], checkpoint=tiny_llava, on_bad_row="skip")

        assert "No row of the 'val' split can be used. A text of sample 'val-bad'" in refused(
            module
        )

    def test_the_whole_list_is_a_file(self, tmp_path: Path) -> None:
        bad = BadRows("skip")
        bad.split = "train"
        for k in range(30):
            bad.add(DataError(f"row {k} has {LONE}", "text"))

        with bad.write(tmp_path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))

        assert rows[29] == {
            "split": "train",
            "kind": "text",
            "problem": "row 29 has half a \\ud83d",
        }
        assert len(rows) == 30

    def test_the_lists_of_two_datasets_are_in_one_file(self, tmp_path: Path) -> None:
        first, second = BadRows("skip"), BadRows("skip")
        first.add(DataError(f"row 1 has {LONE}", "text"))
        second.add(DataError("row 2 has no image", "image"))
        for each in (first, second, first):
            file = each.write(tmp_path)

        with file.open(newline="", encoding="utf-8") as written:
            problems = [row["problem"] for row in csv.DictReader(written)]

        assert problems == ["row 1 has half a \\ud83d", "row 2 has no image"]

    def test_the_list_makes_its_folder(self, tmp_path: Path) -> None:
        assert BadRows("skip").write(tmp_path / "new").is_file()

    def test_each_row_of_a_bad_picture_is_counted_in_its_split(
        self, tiny_llava: str, tmp_path: Path
    ) -> None:
        (tmp_path / "bad.png").touch()
        asked = [said(f"bad-{k}", "What?", images=[tmp_path / "bad.png"]) for k in range(5)]
        bad = [
            replace(each, conversation=[Turn("user", "What?", images=1), each.conversation[1]])
            for each in asked
        ]
        twice = said("twice", "<s>", options=Options("green", "blue"), boxes=[Box(0, 0, -1, 1)])
        module = Memory(
            [*TALK, *bad, twice], [*TALK, *bad[:2]], checkpoint=tiny_llava, on_bad_row="skip"
        )

        module.setup("fit")

        assert module.left_out_metrics("train", "val") == {
            "bad_rows/train": 6.0,
            "bad_rows/val": 2.0,
        }

    def test_a_check_counts_rows_and_not_what_is_wrong_with_them(self, tmp_path: Path) -> None:
        picture().save(tmp_path / "good.png")
        (tmp_path / "bad.png").touch()
        rows: list[Any] = [
            {**conversation(str(k)), "image": "bad.png" if k < 5 else "good.png"} for k in range(8)
        ]
        train = tmp_path / "rows.json"
        train.write_text(json.dumps([*rows, {}, rows[0] | {"id": "again"}]))
        module = LlavaJson(train=str(train), checkpoint="unused", on_bad_row="skip", val=str(train))

        assert take_inventory(module, ["train"]).left_out == 7

    def test_the_list_is_written_once(
        self, tiny_llava: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        module = Memory([*TALK, said("bad", "<s>")], TALK, checkpoint=tiny_llava, on_bad_row="skip")
        module.trainer = Trainer(
            default_root_dir=tmp_path, logger=CSVLogger(tmp_path), accelerator="cpu"
        )

        with caplog.at_level(logging.WARNING):
            module.setup("fit")
            for _ in range(3):
                module.plain_dataloader("train")

        assert caplog.text.count("All of them are in") == 1

    def test_what_is_wrong_besides_is_said(self, tiny_llava: str, tmp_path: Path) -> None:
        rows = [conversation(name, images=0) for name in "abc"] + [
            {**conversation("d", images=0), "tools": ["x"]}
        ]
        train = str(write_llava_json(tmp_path, rows))
        for policy in ("skip", "raise"):
            module = LlavaJson(
                train=train, val=f"{tmp_path}/no.json", checkpoint=tiny_llava, on_bad_row=policy
            )

            problem = refused(module)

            assert "row 4, field 'tools'" in problem
            assert "no.json does not exist" in problem

    def test_only_two_policies_are_known(self, tiny_llava: str) -> None:
        with pytest.raises(ConfigError, match="on_bad_row is 'drop'; it can be 'raise' or 'skip'"):
            Memory(checkpoint=tiny_llava, on_bad_row="drop")


def test_bad_rows_are_refused_at_each_attempt_until_they_are_mended(
    tiny_llava: str, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "two"}]
    rows: list[dict[str, object]] = [{"id": str(k), "conversations": turns} for k in range(8)]
    module = LlavaJson(train=str(file), val_fraction=0.3, checkpoint=tiny_llava)
    file.write_text(json.dumps([*rows, {"id": "bad", "conversations": []}]))

    assert refused(module) == refused(module)
    file.write_text(json.dumps(rows))
    module.setup("fit")

    assert sum(map(len, module.samples.values())) == len(rows)


def test_what_was_refused_besides_another_error_is_forgotten_once_it_is_mended(
    tiny_llava: str, tmp_path: Path
) -> None:
    rows = [conversation(str(k), images=0) for k in range(4)]
    train, val = tmp_path / "train.json", tmp_path / "val.json"
    train.write_text(json.dumps([*rows, {}]))
    module = LlavaJson(train=str(train), val=str(val), checkpoint=tiny_llava)
    assert "val.json does not exist" in refused(module)

    for file in (train, val):
        file.write_text(json.dumps(rows))
    module.setup("fit")

    assert len(module.samples["train"]) == 4


def test_a_check_of_all_samples_refuses_bad_rows_at_each_attempt(
    tiny_llava: str, tmp_path: Path
) -> None:
    rows = [*(conversation(str(k), images=0) for k in range(4)), {}]
    module = LlavaJson(train=str(write_llava_json(tmp_path, rows)), checkpoint=tiny_llava)

    for _ in range(2):
        with pytest.raises(DataError, match="row 5"):
            run_full_check(module, ["train"])


def test_a_picture_in_two_splits_is_looked_for_among_what_is_kept(
    tiny_llava: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = [replace(sample, picture="shared") for sample in TALK[:2]]
    module = Memory(
        [*TALK, replace(said("bad", "<s>"), picture="shared")],
        one,
        checkpoint=tiny_llava,
        on_bad_row="skip",
    )

    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    assert "samples of the 'val' split have a picture that the 'train' split has" not in caplog.text

    module = Memory([said("bad", "<s>"), *one], one, checkpoint=tiny_llava, on_bad_row="skip")
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    assert (
        "2 of the 2 samples of the 'val' split have a picture that the 'train' split has"
        in caplog.text
    )


def test_a_system_text_is_looked_at_as_any_other(tiny_llava: str) -> None:
    problem = refused(Memory([*TALK, said("bad", system=LONE)], TALK, checkpoint=tiny_llava))

    assert problem.startswith("The system of sample 'bad' in the 'train' split has '\\ud83d'")


def test_a_lazy_picture_that_cannot_be_drawn_names_its_sample(tiny_llava: str) -> None:
    def draw() -> Image.Image:
        raise KeyError("no such scene")

    train = [replace(TRAIN[0], id="drawn", images=[LazyImage((9, 9), draw)]), *TRAIN]

    assert "Sample 'drawn' can't be prepared for the model: KeyError: 'no such scene'." in refused(
        Memory(train, checkpoint=tiny_llava)
    )
