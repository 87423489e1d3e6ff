"""`extract` and `predict` from command line to files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks import AnswerTable, PredictionTable, SkipComputations
from lightning_mllm.callbacks.answers import count_classes
from lightning_mllm.cli.commands.extract import describe_reading
from lightning_mllm.cli.main import main
from lightning_mllm.data import ImageFolder, LlavaJson
from lightning_mllm.data.datasets.asked import list_asked_pictures
from lightning_mllm.errors import ConfigError, DataError, NotFiniteError, UserError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.freeze import ZeroShot
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.probing import Point, extract_states
from lightning_mllm.probing.features import state_files
from lightning_mllm.probing.features.state_files import StateWriter, claim_state_folder
from lightning_mllm.probing.features.states import SampleStates
from lightning_mllm.trainer import Trainer
from tests.conftest import FamilyBuilder
from tests.families.checkpoints import Colours
from tests.support.command_line import (
    SMALL_DIGITS,
    conversation,
    files_below,
    isolate,
    picture,
    write_image_folder,
    write_llava_json,
)

POINTS = [Point("last", 2), Point("prompt", 1, "none")]
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def table(path: Path | str | None) -> list[dict[str, str]]:
    assert path is not None
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


# ---- extract -------------------------------------------------------------------------------------


def extract(checkpoint: str, folder: str, **options: Any) -> Path:
    """Extract three batches, as in a notebook."""
    trainer = Trainer(logger=False, accelerator="cpu", callbacks=[_NoSecondBar()])
    data = Colours(checkpoint=checkpoint, eval_batch_size=3)
    module = MLLMModule(checkpoint, policy=ZeroShot())
    index = trainer.extract(module, data, output=folder, points=POINTS, **options)
    assert trainer.progress_bar_callback is not None  # is back
    return index


class _NoSecondBar(L.Callback):
    """While states are extracted, which has a bar of its own, there is none of Lightning's."""

    def on_predict_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        assert trainer.progress_bar_callback is None


def test_three_lines_read_what_the_framework_extracts(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_files, "_SHARD", 5_000)  # less than a batch
    extract(tiny_llava, "states")

    batches = Colours(checkpoint=tiny_llava, eval_batch_size=3).plain_dataloader("test")
    backbone = Backbone.from_pretrained(tiny_llava)
    expected = list(extract_states(backbone, batches, POINTS))
    for point in POINTS:
        read: dict[str, Any] = {}
        exec(describe_reading(Path("states"), point.name), read)
        own = [each for each in expected if each.point == point]
        assert [row["sample_id"] for row in read["index"]] == [each.sample_id for each in own]
        assert torch.equal(read["states"], torch.cat([each.states for each in own]))
        assert len({row["file"] for row in read["index"]}) == 3
        spans = [json.loads(row["spans"] or "{}") for row in read["index"]]
        assert spans == [each.spans for each in own]
    assert {row["label"] for row in read["index"]} >= {"red", "light green"}
    (image,) = json.loads(read["index"][0]["images"])
    ((rows, columns, newline),) = image["grids"]
    assert (rows * columns, newline) == (image["tokens"], False)


@pytest.mark.slow
def test_what_was_stopped_is_continued_and_ends_as_one_that_was_not(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_files, "_SHARD", 1)
    extract(tiny_llava, "whole")
    add, taken = StateWriter.add, list[int]()

    def fail_later(self: StateWriter, states: Sequence[SampleStates], *others: Any) -> None:
        if len(taken) == 2:
            raise RuntimeError("the power is gone")
        taken.append(len(states))
        add(self, states, *others)

    with monkeypatch.context() as patch:
        patch.setattr(StateWriter, "add", fail_later)
        with pytest.raises(RuntimeError, match="the power is gone"):
            extract(tiny_llava, "stopped")
    left = {file: Path("stopped", file).stat().st_mtime_ns for file in files_below(Path("stopped"))}
    extract(tiny_llava, "stopped")

    assert files_below(Path("stopped")) == files_below(Path("whole"))
    for file in files_below(Path("whole")):
        assert Path("stopped", file).read_bytes() == Path("whole", file).read_bytes()
    kept = [file for file in left if file.endswith(".safetensors")]
    assert len(kept) == 4
    assert all(Path("stopped", file).stat().st_mtime_ns == left[file] for file in kept)


def test_states_of_other_settings_and_other_files_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    claim_state_folder(tmp_path / "states", {"dtype": "float32"})
    claim_state_folder(tmp_path / "states", {"dtype": "float32"})

    with pytest.raises(ConfigError, match="dtype was 'float32', is 'float16'"):
        claim_state_folder(tmp_path / "states", {"dtype": "float16"})
    with pytest.raises(ConfigError, match="mine is not empty"):
        claim_state_folder(tmp_path / "mine", {"dtype": "float32"})

    assert files_below(tmp_path) == {"mine/thesis.txt", "states/making.json"}


def test_the_command_ends_with_what_it_has_written_and_leaves_no_run(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    points = ("--points", "[{place: last, layer: 2}]", "--trainer.limit_predict_batches", "1")
    given = ("--model.checkpoint", tiny_llava, *SMALL_DIGITS, "--trainer.accelerator", "cpu")
    main(["extract", *given, *points, "--output", "states"])

    printed = capsys.readouterr().out
    assert "layer2-last" in printed
    assert describe_reading(Path("states"), "layer2-last") in printed
    assert files_below(Path()) == {
        f"states/{name}" for name in ("index.csv", "making.json", "layer2-last-00000.safetensors")
    }


def test_what_a_data_type_can_not_hold_is_refused(tmp_path: Path) -> None:
    point = Point("last", 1)
    writer = StateWriter(tmp_path, [point], dtype="float16", split="test")

    with pytest.raises(NotFiniteError, match=r"reach 1e\+05, which torch.float16 can't hold"):
        writer.add([SampleStates("a", point, torch.full((1, 2), 1e5))], {}, {})


def test_a_writer_goes_on_after_the_samples_that_are_written(tmp_path: Path) -> None:
    point = Point("last", 1)
    first = StateWriter(tmp_path, [point], dtype="float32", split="test")
    first.add([SampleStates("a", point, torch.ones(1, 2))], {"a": "cat"}, {})
    first.flush()
    first.add([SampleStates("lost", point, torch.ones(1, 2))], {}, {})  # it is killed here

    second = StateWriter(tmp_path, [point], dtype="float32", split="test")
    assert second.done == {"a"}
    second.add([SampleStates("b", point, torch.ones(1, 2))], {}, {})
    second.flush()

    rows = table(second.merge())
    assert [(row["sample_id"], row["label"]) for row in rows] == [("a", "cat"), ("b", "")]
    assert len({row["file"] for row in rows}) == 2
    assert StateWriter(tmp_path, [point], dtype="float32", split="test").done == {"a", "b"}


def test_at_most_a_shard_and_a_batch_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_files, "_SHARD", 1000)
    point = Point("text", 1, "none")
    writer = StateWriter(tmp_path, [point], dtype="float32", split="test")
    held = 0
    for number in range(30):
        writer.add([SampleStates(str(number), point, torch.randn(10, 8))], {}, {})
        held = max(held, sum(each.nbytes for each in writer._tensors[point.name]))
    writer.flush()

    assert held < 1000
    assert len(table(writer.merge())) == 30


def test_grids_are_of_the_pictures_that_are_left(tiny_family: FamilyBuilder) -> None:
    checkpoint = tiny_family("qwen2_vl")  # whose grid is that of the picture
    turns = conversation("a")["conversations"]
    file = write_llava_json(Path("long"), [conversation("a", images=2, conversations=2 * turns)])
    picture(0, (280, 140)).save(Path("long", "a-0.png"))
    picture(1, (56, 112)).save(Path("long", "a-1.png"))
    data = LlavaJson(checkpoint=checkpoint, test=str(file), train=str(file), max_length=90)
    module = MLLMModule(checkpoint, policy=ZeroShot())
    point = Point("image", 1, "none")
    index = Trainer(logger=False, **QUIET).extract(module, data, output="states", points=point)

    (row,) = table(index)
    (image,) = json.loads(row["images"])
    ((rows, columns, _),) = image["grids"]
    assert rows > columns
    assert rows * columns == image["tokens"] == int(row["end"])


def test_a_folder_of_states_may_have_other_files_and_any_label(tmp_path: Path) -> None:
    point = Point("last", 1)
    save_file({"weights": torch.ones(1)}, tmp_path / "my-probe.safetensors")
    writer = StateWriter(tmp_path, [point], dtype="float32", split="test")
    labels = {"a": "x\u2028y", "b": "1\x85"}
    states = [SampleStates(name, point, torch.full((1, 2), k)) for k, name in enumerate(labels)]
    writer.add(states, labels, {})
    writer.flush()
    writer.merge()

    read: dict[str, Any] = {}
    exec(describe_reading(tmp_path, point.name), read)
    assert {row["sample_id"]: row["label"] for row in read["index"]} == labels
    assert read["states"].tolist() == [[0, 0], [1, 1]]


# ---- predict -------------------------------------------------------------------------------------


def test_answers_are_counted_by_class_and_those_without_one_apart() -> None:
    assert count_classes(["cat", "red fox", "cat"]) == "2 cat, 1 red fox"
    assert count_classes(["cat", "", None]) == "1 cat; no class named in 2 of 3"
    assert count_classes(["", ""]) == "no class named in 2 of 2"
    assert count_classes(list("aabcdefg")) == "2 a, 1 b, 1 c, 1 d, 1 e and 2 other classes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    counts = {f"{split}/{name}": 2 for split in ("train", "test") for name in ("cat", "red_fox")}
    return write_image_folder(tmp_path / "pictures", counts)


class Counting(L.Callback):
    """A callback of a user's."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: MultimodalBatch, *_: Any
    ) -> None:
        self.seen += batch.sample_ids


def test_predict_answers_a_labelled_split_as_test_does_and_pictures_as_the_runs_own(
    tiny_llava: str, folder: Path
) -> None:
    module = MLLMModule(tiny_llava, policy=ZeroShot())
    data = ImageFolder(checkpoint=tiny_llava, root=str(folder))
    counting, answers = Counting(), AnswerTable()
    trainer = Trainer(callbacks=[PredictionTable(), counting, answers], **QUIET)
    trainer.test(module, datamodule=data, verbose=False)
    trainer.predict(module, datamodule=data)
    predicted = table(answers.path)
    assert counting.seen == [row["sample_id"] for row in predicted]
    trainer.predict(module, datamodule=data, images=str(folder / "test"))

    assert predicted == table("runs/run/evaluation/test-step0/predictions.csv")
    assert "likelihood/log_probability" in predicted[0]
    for row in predicted:  # the order of the classes in a prompt depends on the sample
        del row["target"], row["generation/correct"], row["likelihood/correct"]
    assert table(answers.path) == predicted


def test_answers_skip_what_a_test_skips(tiny_llava: str, folder: Path) -> None:
    skip = Skip(computation="block", share=1.0, tokens="all", phase="both", start=1)
    module = MLLMModule(tiny_llava, policy=ZeroShot())
    data = ImageFolder(checkpoint=tiny_llava, root=str(folder))
    answers = AnswerTable()
    trainer = Trainer(callbacks=[PredictionTable(), SkipComputations(skip), answers], **QUIET)
    trainer.test(module, datamodule=data, verbose=False)
    trainer.predict(module, datamodule=data)

    assert table(answers.path) == table("runs/run/evaluation/test-step0/predictions.csv")
    asked = write_llava_json(Path("mixed"), [conversation("a"), conversation("b", images=0)])
    rows = json.loads(asked.read_text())
    asked.write_text(json.dumps([{**rows[0], "kind": "thing"}, rows[1]]))
    mixed = LlavaJson(checkpoint=tiny_llava, train=str(asked), test=str(asked))
    trainer.predict(module, datamodule=mixed)
    assert [bool(row["kind"]) for row in table(answers.path)] == [True, False]


def test_only_predict_answers(tiny_llava: str) -> None:
    answers = AnswerTable()
    trainer = Trainer(logger=False, callbacks=[answers], **QUIET)
    data = Colours(checkpoint=tiny_llava, eval_batch_size=3)
    module = MLLMModule(tiny_llava, policy=ZeroShot())

    trainer.extract(module, data, output="states", points=POINTS)

    assert answers.path is None
    assert trainer.answers


def test_every_picture_of_a_folder_is_answered_or_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "test" / ".thumbnails").mkdir()
    for name in (".thumbnails/0.png", "._0.png", "notes.txt", "CMYK.JPG", 'a, "b".png'):
        mode = "CMYK" if name == "CMYK.JPG" else "RGB"
        Image.new(mode, (8, 8)).save(folder / "test" / name, "JPEG")

    found = [sample.id for sample in list_asked_pictures(folder / "test")]

    assert found[:2] == ["CMYK.JPG", 'a, "b".png']
    assert len(found) == 6
    assert "1 files in" in caplog.text and "notes.txt" in caplog.text
    (folder / "test" / "cat" / "IMG_1.HEIC").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 pictures in .*formats that are not read.*IMG_1\.HEIC"):
        list_asked_pictures(folder / "test")


def test_pictures_are_asked_a_question_without_a_dataset(
    tiny_llava: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--model.checkpoint", tiny_llava, "--trainer.accelerator", "cpu")
    asked = ("--images", str(folder / "test"), "--question", "What is it?")
    main(["predict", *given, *asked, "--trainer.enable_progress_bar", "false"])

    path = Path("runs/run/predict/pictures-step0/predictions.csv")
    assert f"4 answers are in {path}" in capsys.readouterr().out
    rows = table(path)
    assert list(rows[0]) == ["sample_id", "prompt", "answer"]
    assert [row["sample_id"] for row in rows][:2] == ["cat/0.png", "cat/1.png"]
    assert "What is it?" in rows[0]["prompt"]


def test_nothing_to_answer_is_said_in_a_sentence(tiny_llava: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    module, trainer = MLLMModule(tiny_llava), Trainer(logger=False, **QUIET)
    cases: dict[str, dict[str, Any]] = {
        "There is nothing to answer": {},
        "has no picture in it": {"images": str(folder / "empty")},
        "nowhere does not exist": {"images": "nowhere"},
        "There is no question": {"images": str(folder / "test")},
        "are about pictures of your own": {"question": "Eh?"},
        "Leave one out": {"images": str(folder / "test"), "split": "val"},
    }
    for message, options in cases.items():
        with pytest.raises(UserError, match=message):
            trainer.predict(module, **options)
    with pytest.raises(UserError, match="nowhere does not exist"):
        Trainer(**QUIET).predict(module, images="nowhere")
    assert not list(Path("runs").iterdir())
