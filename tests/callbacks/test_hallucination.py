"""POPE and CHAIR in real tests of the test-bed's model, whose world has an exact truth."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lightning_mllm.analysis import Skip, skipping
from lightning_mllm.callbacks import (
    ChairReport,
    EvaluationReport,
    PopeReport,
    PredictionTable,
    SkipComputations,
)
from lightning_mllm.data import MLLMDataModule
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation import ChairMetrics, Mentions
from lightning_mllm.evaluation.decoding import decode_answers
from lightning_mllm.evaluation.hallucination.pope import SAMPLINGS
from lightning_mllm.evaluation.open_answers.cider import cider_d
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.models.freeze import ZeroShot
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.testbed import checkpoint, draw_scene
from lightning_mllm.testbed.datamodules import WorldConversations, WorldQuestions
from lightning_mllm.testbed.world.scenes import SHAPES
from tests.callbacks.conftest import make_data, make_trainer
from tests.support.command_line import CONFIGS

OBJECTS = str(CONFIGS / "studies/alignment_testbed/objects.txt")
MODEL = checkpoint("instructed")


def questions(**options: Any) -> WorldQuestions:
    counts = {"per_kind": 4, "val_per_kind": 1, "train_per_kind": 1, "eval_batch_size": 6}
    return WorldQuestions(checkpoint=MODEL, **{"parts": ["presence"], **counts, **options})


def pictures() -> WorldConversations:
    counts: dict[str, Any] = {
        "captioned": 1.0,
        "questions": 0,
        "test_scenes": 6,
        "eval_batch_size": 4,
    }
    return WorldConversations(checkpoint=MODEL, material="pictures", world_seed=5, **counts)


def run_test(
    folder: Path,
    callbacks: list[L.Callback],
    data: MLLMDataModule,
    model: str = MODEL,
    **options: Any,
) -> Path:
    """Test; return the folder of the evaluation."""
    trainer = make_trainer(folder, callbacks, **options)
    trainer.test(MLLMModule(model, policy=ZeroShot()), datamodule=data, verbose=False)
    return folder / "evaluation" / "test-step0"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_test(
        tmp_path_factory.mktemp("captions"), [ChairReport(OBJECTS, max_new_tokens=48)], pictures()
    )


def test_the_answers_of_the_evaluation_have_popes_scores(tmp_path: Path) -> None:
    folder = run_test(
        tmp_path, [PopeReport(), PredictionTable(images=0), EvaluationReport()], questions()
    )

    scores = json.loads((folder / "pope.json").read_text())
    answers = rows(folder / "predictions.csv")
    assert (scores["n"], scores["reading"]) == (12, "named")
    assert scores["accuracy"] == sum(row["correct"] == "True" for row in answers) / 12
    assert scores["yes_rate"] == sum(row["answer"] == "yes" for row in answers) / 12
    assert {name: own["n"] for name, own in scores["samplings"].items()} == dict.fromkeys(
        SAMPLINGS, 4
    )
    assert (
        json.loads((folder / "scores.json").read_text())["exact_match"]["accuracy"]
        == scores["accuracy"]
    )


def test_a_second_test_starts_anew(tmp_path: Path) -> None:
    trainer, data = make_trainer(tmp_path, [PopeReport()]), questions()
    module = MLLMModule(MODEL, policy=ZeroShot())
    for _ in range(2):
        trainer.test(module, datamodule=data, verbose=False)

    assert json.loads((tmp_path / "evaluation/test-step0/pope.json").read_text())["n"] == 12


def test_captions_are_held_against_what_is_in_the_picture(described: Path) -> None:
    captions = rows(described / "captions.csv")

    assert [row["sample_id"] for row in captions] == [
        sample.id for sample in pictures().load("test")
    ]
    metric = ChairMetrics()
    for row in captions:
        shapes = {thing.shape for thing in draw_scene(row["sample_id"]).objects}
        words = row["caption"].replace(",", " ").split()
        named = [word for word in words if word in SHAPES]
        metric.update([Mentions(named, shapes)])
        assert row["named"] == "; ".join(named)
        assert row["hallucinated"] == "; ".join(name for name in named if name not in shapes)
        assert row["missed"] == "; ".join(sorted(shapes - {*named}))
    expected = metric.result()
    assert expected is not None
    scores = json.loads((described / "chair.json").read_text())
    assert {name: scores[name] for name in ("n", "chair_i", "chair_s", "recall")} == {
        **{"n": 6, "chair_i": expected.chair_i},
        **{"chair_s": expected.chair_s, "recall": expected.recall},
    }
    assert scores["max_new_tokens"] == 48
    assert expected.recall > 0.5  # the model does describe these pictures


def test_the_truth_can_come_from_a_file(described: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    lines = [f"{sample.id},circle" for sample in pictures().load("test")]
    truth.write_text("\n".join(["sample_id,objects", *lines]))
    callback = ChairReport(OBJECTS, objects=str(truth), from_references=False, max_new_tokens=48)

    folder = run_test(tmp_path / "run", [callback], pictures())

    for row, before in zip(
        rows(folder / "captions.csv"), rows(described / "captions.csv"), strict=True
    ):
        assert row["caption"] == before["caption"]
        assert row["hallucinated"] == "; ".join(
            name for name in row["named"].split("; ") if name != "circle"
        )


def test_a_model_that_skips_describes_what_it_sees_then(described: Path, tmp_path: Path) -> None:
    everything = Skip(computation="block", share=1.0)  # of the visual tokens: text can't see them
    callbacks = [ChairReport(OBJECTS, max_new_tokens=48), SkipComputations(everything)]

    folder = run_test(tmp_path, callbacks, pictures())

    whole = [row["caption"] for row in rows(described / "captions.csv")]
    data, module = pictures(), MLLMModule(MODEL, policy=ZeroShot())
    module.configure_model()
    expected = []
    for batch in data.plain_dataloader("test"):
        with skipping(module.backbone, batch, everything):
            tokens = decode_answers(PromptPass(module.backbone.model, batch), 48)
        expected += [
            text.strip() for text in module.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ]
    assert [row["caption"] for row in rows(folder / "captions.csv")] == expected != whole


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    for callback, data in (
        (PopeReport(), questions()),
        (ChairReport(OBJECTS, max_new_tokens=2), pictures()),
    ):
        run_test(tmp_path, [callback], data, fast_dev_run=True)

    assert not list(tmp_path.rglob("*.json"))


def test_questions_of_no_presence_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"PopeReport needs samples of a kind that ends with random, popular"
    ):
        run_test(tmp_path, [PopeReport()], questions(parts=["text"]))


def test_captions_of_labelled_samples_are_refused(tmp_path: Path, tiny_llava: str) -> None:
    with pytest.raises(
        ConfigError, match=r"ChairReport asks for captions, but the samples have labels"
    ):
        run_test(tmp_path, [ChairReport(OBJECTS)], make_data(tiny_llava), tiny_llava)


def test_a_picture_of_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("sample_id,objects\nanother,circle\n")

    with pytest.raises(DataError, match=r"Sample '5/test/pictures/0' is not in .*truth\.csv"):
        run_test(tmp_path, [ChairReport(OBJECTS, objects=str(truth))], pictures())


def test_a_caption_of_no_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures()
    first, *others = data.load("test")
    turns = [replace(turn, images=0) for turn in first.conversation]
    samples = [*others, replace(first, id="told", images=(), conversation=turns)]
    monkeypatch.setattr(data, "load", lambda split: samples)

    with pytest.raises(DataError, match=r"Sample 'told' has no image.*Give it one or leave it out"):
        run_test(tmp_path, [ChairReport(OBJECTS)], data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_references": False}, r"must know what is in the pictures"),
        ({"max_new_tokens": 0}, r"max_new_tokens must be at least 1, not 0"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChairReport(OBJECTS, **options)


def test_with_references_captions_are_compared_with_what_people_say(tmp_path: Path) -> None:
    data = pictures()
    references = {}
    for sample in data.load("test"):
        references[sample.id] = [sample.conversation[-1].text, "a red circle"]
    file = tmp_path / "references.json"
    file.write_text(json.dumps(references))
    report = ChairReport(OBJECTS, references=str(file), max_new_tokens=48)

    folder = run_test(tmp_path, [report], data)

    found = json.loads((folder / "cider.json").read_text())
    captions = {row["sample_id"]: row["caption"] for row in rows(folder / "captions.csv")}
    expected = cider_d(list(captions.values()), [references[name] for name in captions])
    assert (found["n"], found["cider_d"]) == (6, pytest.approx(expected.mean()))
    low, high = found["cider_d_interval_95"]
    assert low <= found["cider_d"] <= high
    assert found["cider_d_shuffled"] < found["cider_d"]
    # "circle" is in every picture now
    missed = [row["missed"].split("; ") for row in rows(folder / "captions.csv")]
    named = [row["named"].split("; ") for row in rows(folder / "captions.csv")]
    assert all("circle" in (*a, *b) for a, b in zip(missed, named, strict=True))


def test_a_sample_without_references_is_named(tmp_path: Path) -> None:
    file = tmp_path / "references.json"
    file.write_text(json.dumps({"other": ["a red circle"]}))

    with pytest.raises(DataError, match=r"is not in .*references.json. Give it a list of captions"):
        run_test(tmp_path, [ChairReport(OBJECTS, references=str(file))], pictures())
