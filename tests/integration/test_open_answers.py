"""Open answers from the command line to the report: exact match per kind of question."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mllm.batches import join_images
from lightning_mllm.cli.commands.model import ModelCLI
from lightning_mllm.cli.main import main
from lightning_mllm.evaluation import AnswerScore, ExactMatch
from lightning_mllm.models.loss import answer_loss
from tests.support.command_line import final_metrics, isolate, write_llava_json

COLOUR, SHAPE = "What colour is it?", "What shape is it?"
ANSWERS = {COLOUR: "red", SHAPE: "long box"}  # to each question the same
TEST = [  # question, its reference, kind
    (COLOUR, "red", "colour"),
    (COLOUR, '"Red".', "colour"),
    (COLOUR, "blue", "colour"),
    (SHAPE, "long box", "shape/2d"),
    (SHAPE, "long", "shape/2d"),  # the answer goes on
    (SHAPE, "long box lid", "shape/2d"),
    (SHAPE, "Long  box", "shape/2d"),
    (COLOUR, "red", None),
    (SHAPE, "round", None),
]


def row(
    name: str, question: str, answer: str, kind: str | None = None, images: int = 0
) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\n" * images + question},
        {"from": "gpt", "value": answer},
    ]
    row: dict[str, Any] = {"id": name, "conversations": turns}
    return {
        **row,
        **({"kind": kind} if kind else {}),
        **({"image": [f"{name}.png"]} if images else {}),
    }


def write_questions(folder: Path) -> tuple[Path, Path]:
    """Write training and test questions."""
    learnt = [row(f"{k}", *list(ANSWERS.items())[k % 2], images=k // 2 % 2) for k in range(8)]
    asked = [
        row(f"{k}", question, answer, kind, images=k % 2)
        for k, (question, answer, kind) in enumerate(TEST)
    ]
    return write_llava_json(folder / "train", learnt), write_llava_json(folder / "test", asked)


def arguments(checkpoint: str, train: Path, test: Path, root: Path) -> list[str]:
    return [
        *(
            "--model.checkpoint",
            checkpoint,
            "--model.policy",
            "Everything",
            "--model.warmup_ratio",
            "0",
        ),
        *("--model.learning_rates.projector", "5e-3", "--model.learning_rates.llm", "5e-3"),
        *(
            "--data",
            "LlavaJson",
            "--data.init_args.train",
            str(train),
            "--data.init_args.test",
            str(test),
        ),
        *("--data.init_args.val", str(test), "--data.init_args.batch_size", "8"),
        *(
            "--data.init_args.eval_batch_size",
            "4",
            "--trainer.accelerator",
            "cpu",
            "--trainer.run.root",
            str(root),
        ),
    ]


@dataclass
class Learnt:
    """A model that has learnt one answer to each of two questions, and the folder of its fit."""

    cli: ModelCLI
    arguments: list[str]
    run: Path

    @property
    def last(self) -> Path:
        return self.run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Iterator[Learnt]:
    folder = tmp_path_factory.mktemp("questions")
    with pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch, folder)
        options = arguments(tiny_llava, *write_questions(folder), folder / "runs")
        cli = ModelCLI(["fit", *options, "--trainer.max_steps", "12", "--test_after", "true"])
        yield Learnt(cli, options, folder / "runs" / "run")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_hand(cli: ModelCLI) -> dict[str, bool]:
    """Sample id -> whether the model says its reference; one sample at a time, to the end."""
    model, data = cli.model.backbone.model, cli.datamodule
    verdicts = {}
    for sample in data.samples["test"]:
        prompt = data.eval_collator([(0, sample)]).prompts()
        with torch.no_grad():
            tokens = model.generate(
                input_ids=prompt.input_ids,
                attention_mask=prompt.attention_mask,
                **join_images(prompt.images),
                max_new_tokens=40,
                do_sample=False,
            )[0, prompt.input_ids.shape[1] :]
        said = data.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        wanted = sample.conversation[-1].text.replace('"', "").replace(".", "")
        verdicts[sample.id] = said.lower().split() == wanted.lower().split()
    return verdicts


def test_the_score_is_that_of_a_loop_by_hand(learnt: Learnt) -> None:
    verdicts = by_hand(learnt.cli)
    found = learnt.cli.model.exact_match

    assert [verdicts[str(k)] for k in range(len(TEST))] == [
        True,
        True,
        False,
        True,
        False,
        False,
        True,
        True,
        False,
    ]
    assert found is not None
    assert found.per_kind == {"colour": AnswerScore(3, 2), "shape/2d": AnswerScore(4, 2)}


@pytest.mark.parametrize(("spare_tokens", "with_greedy"), [(2, False), (40, False), (2, True)])
def test_neither_the_cut_nor_the_batch_nor_what_is_known_changes_a_verdict(
    learnt: Learnt, spare_tokens: int, with_greedy: bool
) -> None:
    model, data = learnt.cli.model, learnt.cli.datamodule
    items = [(0, sample) for sample in data.samples["test"]]
    verdicts = by_hand(learnt.cli)

    for parts in ([items], [[item] for item in items]):
        batches = [data.eval_collator(part) for part in parts]
        answers = [
            answer
            for batch in batches
            for answer in ExactMatch(spare_tokens).evaluate(
                model.backbone.model,
                model.tokenizer,
                batch,
                answer_loss(model.backbone, batch, with_greedy=with_greedy).greedy,
            )
        ]
        assert [answer.sample_id for answer in answers] == [
            sample.id for _, sample in items if sample.kind
        ]
        assert all(answer.correct == verdicts[answer.sample_id] for answer in answers)


def test_scores_are_logged_and_reported(learnt: Learnt) -> None:
    metrics = final_metrics(learnt.run)
    (folder,) = (learnt.run / "evaluation").glob("test-*")
    report = json.loads((folder / "scores.json").read_text())
    table = rows(folder / "exact-match-per-kind.csv")

    for stage in ("val", "test"):
        assert metrics[f"{stage}/exact_match/accuracy"] == pytest.approx(4 / 7)
        assert metrics[f"{stage}/exact_match/colour"] == pytest.approx(2 / 3)
        assert metrics[f"{stage}/exact_match/shape/2d"] == 0.5
    assert set(report) == {"stage", "step", "dtype", "batch_size", "exact_match"}
    scores = report["exact_match"]
    assert (scores["n"], scores["mean_over_kinds"]) == (7, pytest.approx(7 / 12))
    assert scores["kinds"]["shape/2d"]["n"] == 4
    assert scores["accuracy_interval_95"] == list(AnswerScore(7, 4).interval)
    assert [(line["kind"], line["n"], line["correct"]) for line in table] == [
        ("colour", "3", "2"),
        ("shape/2d", "4", "2"),
    ]


def test_each_answer_is_kept(learnt: Learnt) -> None:
    (file,) = (learnt.run / "evaluation").glob("test-*/predictions.csv")
    table = rows(file)

    assert list(table[0]) == ["sample_id", "kind", "prompt", "reference", "answer", "correct"]
    assert [line["sample_id"] for line in table] == [str(k) for k in range(7)]
    assert [line["reference"] for line in table] == [answer for *_, answer, kind in TEST if kind]
    assert [line["correct"] == "True" for line in table] == [
        by_hand(learnt.cli)[str(k)] for k in range(7)
    ]
    assert all(
        ANSWERS[COLOUR if COLOUR in line["prompt"] else SHAPE] == line["answer"] for line in table
    )
    assert file.with_suffix(".png").is_file()


def test_a_checkpoint_holds_nothing_of_it(learnt: Learnt) -> None:
    state = torch.load(learnt.last, weights_only=True)["state_dict"]

    assert set(state) == set(learnt.cli.model.freeze_report.trainable_names)


@pytest.fixture
def run_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    isolate(monkeypatch, tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_a_checkpoint_is_scored_from_the_command_line(
    learnt: Learnt, command: str, stage: str, run_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        *learnt.arguments,
        "--ckpt_path",
        str(learnt.last),
        "--trainer.run.root",
        str(run_root),
    ]

    main([command, *options, "--trainer.enable_progress_bar", "false"])

    report = json.loads(
        (run_root / "run" / "evaluation" / f"{stage}-step12" / "scores.json").read_text()
    )
    assert {kind: score["n"] for kind, score in report["exact_match"]["kinds"].items()} == {
        "colour": 3,
        "shape/2d": 4,
    }
    assert "mean over kinds" in capsys.readouterr().out
