"""Analyses of a model that is shared among devices, or of samples shared among processes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.cli.main import main
from tests.integration.test_distributed import launch_two, run_two
from tests.support.command_line import files_below, isolate, refusal, write_llava_json

QUICK = {"correct_only": False, "bootstrap": {"resamples": 20}}
ANALYSES: dict[str, dict[str, Any]] = {
    "InformationFlow": {**QUICK, "blocks": ["question->last", "image->question"]},
    "AnswerLens": QUICK,
    "Vocabulary": {},
    "Alignment": {"states": ["residual", "SA", "FC1"], "noise": True},
    "Distinguishability": {"seed": 2},  # in which groups are samples of both halves
    "ComputationSkipping": {
        **QUICK,
        "repetitions": 0,
        "computations": ["ffn", "attention", "block"],
        "shares": [0.0, 0.5, 1.0],
    },
}
ON_THE_DISK = ("--model.device_map", "{cpu: 1, disk: 1}")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def asked(tiny_llava: str, tmp_path: Path) -> list[str]:
    """`analyze` on eleven questions, of which three are about no picture."""
    rows = []
    for k in range(11):
        text = "<image>\n" * (k < 8) + f"Is it red or blue or {k}?"
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "red"}]
        image = {"image": [f"{k}.png"]} if k < 8 else {}
        kind = ("colour", "shape")[k % 2]
        rows.append({"id": f"test-{k}", "kind": kind, "conversations": turns, **image})
    file = write_llava_json(tmp_path / "questions", rows)
    data = [f"--data.init_args.{split}={file}" for split in ("train", "val", "test")]
    return [
        *("analyze", "--model.checkpoint", tiny_llava, "--data", "LlavaJson", *data),
        *("--data.init_args.eval_batch_size", "4", "--trainer.accelerator", "cpu"),
    ]


def write_analyses(**analyses: dict[str, Any]) -> tuple[str, str]:
    """Write a config of analyses; return the options that name it."""
    listed = [{"class_path": name, "init_args": own} for name, own in analyses.items()]
    Path("analyses.yaml").write_text(yaml.safe_dump({"analysis": listed}))
    return "--config", "analyses.yaml"


def named(run: str) -> tuple[str, str]:
    return "--trainer.run.name", run


def check_tables(one: str, other: str, rel: float) -> None:
    """Compare all tables of two runs: the same cells, but for rounding."""
    folders = [Path("runs", run, "analysis") for run in (one, other)]
    files = [{name for name in files_below(folder) if name.endswith("csv")} for folder in folders]
    assert files[0] == files[1] != set()
    for name in files[0]:
        texts = [(folder / name).read_text(encoding="utf-8") for folder in folders]
        tables = [list(csv.reader(text.splitlines())) for text in texts]
        assert len(tables[0]) == len(tables[1]), name
        for ours, theirs in zip(*tables, strict=True):
            for cell, found in zip(ours, theirs, strict=True):
                if cell != found:
                    assert float(found) == pytest.approx(float(cell), rel=rel, abs=rel), name


@pytest.mark.slow
def test_two_processes_find_in_every_analysis_what_one_finds(
    asked: list[str], tmp_path: Path
) -> None:
    analyses = write_analyses(**ANALYSES)

    main([*asked, *analyses, *named("one")])
    run_two([*asked, *analyses, *named("two")], tmp_path)

    check_tables("one", "two", rel=1e-4)


@pytest.mark.slow
def test_a_model_that_is_partly_on_the_disk_gives_the_same_tables(asked: list[str]) -> None:
    analyses = write_analyses(**ANALYSES)

    main([*asked, *analyses, *named("whole")])
    main([*asked, *analyses, *ON_THE_DISK, *named("placed")])

    check_tables("whole", "placed", rel=0)


def test_pruning_weights_that_are_on_the_disk_is_refused(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    analyses = write_analyses(ActivatedWeights={"samples": 4})

    message = refusal(capsys, [*asked, *analyses, *ON_THE_DISK])

    assert "decoder layer 1 lies in the CPU's memory or on the disk" in message


def test_a_model_on_several_devices_is_neither_trained_nor_exported(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = ("--model.checkpoint", tiny_llava, "--model.device_map", "auto")

    fit = refusal(capsys, ["fit", *placed, "--data", "Digits", "--trainer.accelerator", "cpu"])
    export = refusal(capsys, ["export", *placed, "--output", "exported"])

    assert "it can't be trained so. Leave model.device_map out" in fit
    assert "Leave model.device_map out: --model.device_map null" in export


FAILING = """
import os, signal
import lightning as L
import torch
from lightning_mllm.errors import DataError

class Failing(L.Callback):
    def __init__(self, how: str):
        self.how = how

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "refused":
                raise DataError("photos/7.png is broken. Replace it.")
            for values in [each for image in batch.images for each in image.values()]:
                if values.is_floating_point():
                    values.fill_(torch.nan)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("killed", "error: Process 1 of 2 (number "),
        ("refused", "error: Process 1 of 2 has ended with an error. photos/7.png is broken."),
        ("diverged", "error: Process 1 of 2 has ended with an error. The loss of step 3 is not"),
    ],
)
def test_all_processes_end_with_one_sentence_that_names_the_one_that_failed(
    tiny_llava: str, tmp_path: Path, how: str, said: str
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    callback = [{"class_path": "failing.Failing", "init_args": {"how": how}}]
    (tmp_path / "failing.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callback}}))
    arguments = [
        *("fit", "--config", "failing.yaml", "--model.checkpoint", tiny_llava, "--data", "Digits"),
        *("--data.init_args.batch_size", "4", "--trainer.limit_val_batches", "1"),
    ]

    code, errors = launch_two(arguments, tmp_path)

    assert code == 1
    lines = [line for line in errors.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(lines) == 1 and lines[0].startswith(said), errors[-3000:]
