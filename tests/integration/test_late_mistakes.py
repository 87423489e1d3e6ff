"""Mistakes that only set-up or the end of a run can show: one message, exit code not 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MllamaConfig

from lightning_mllm.cli.main import main
from lightning_mllm.models.module import MLLMModule
from tests.support.command_line import (
    SMALL_DIGITS,
    TRIAL,
    conversation,
    files_below,
    isolate,
    refusal,
    write_llava_json,
)

QUIET = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
STOP = (
    "trainer: {callbacks: [{class_path: EarlyStopping, init_args: "
    "{monitor: val/generation/acuracy}}]}"
)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*args: Any) -> None:
        raise AssertionError("the model was run")

    for name in ("training_step", "validation_step", "test_step"):
        monkeypatch.setattr(MLLMModule, name, step)


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    """Options of data with four questions of a kind."""
    rows = [conversation(f"q{k}", kind="thing") for k in range(4)]
    file = write_llava_json(tmp_path / "questions", rows)
    return ["--data", "LlavaJson", *(f"--data.init_args.{s}={file}" for s in ("train", "test"))]


@pytest.mark.usefixtures("no_steps")
def test_a_model_type_that_cannot_be_used_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    MllamaConfig().save_pretrained("mllama")

    message = refusal(capsys, ["fit", "--model.checkpoint", "mllama", *SMALL_DIGITS, *TRIAL])

    assert "'mllama' is a 'mllama' model, which can't be used: its decoder reads" in message
    assert "Choose a checkpoint of one of these: " in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_refused(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, "--trainer.accelerator"]

    message = refusal(capsys, [*arguments, "gpu"])

    assert "trainer.accelerator is 'gpu', but there is no such device here" in message
    assert "--trainer.accelerator cpu" in message
    assert not Path("runs").exists()


@pytest.mark.usefixtures("no_steps")
def test_a_metric_that_is_not_logged_cannot_be_watched(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("stop.yaml").write_text(STOP)
    arguments = ["fit", "--model.checkpoint", tiny_llava, *SMALL_DIGITS, *QUIET]

    message = refusal(capsys, [*arguments, "--test_before", "true", "--config", "stop.yaml"])

    assert "EarlyStopping watches 'val/generation/acuracy', which this fit does not log" in message
    assert "one of: train/loss, val/loss, val/generation/accuracy, val/generation/macro" in message
    assert 'Did you mean "val/generation/accuracy"?' in message


def test_an_analysis_of_no_right_answer_ends_with_the_reason_and_keeps_its_files(
    tiny_llava: str, questions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", "--model.checkpoint", tiny_llava, *questions, *QUIET]

    message = refusal(capsys, [*arguments, "--analysis", "InformationFlow"])

    assert "has measured none of 4 questions, because the model answers none of them" in message
    assert "--analysis.correct_only false" in message
    kept = files_below(Path("runs/run/analysis/test-step0/information_flow"))
    assert kept >= {"rows.csv", "summary.csv", "settings.json"}


def test_an_analysis_prints_its_main_numbers_and_where_its_files_are(
    tiny_llava: str, questions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flow: dict[str, Any] = {
        "class_path": "InformationFlow",
        "init_args": {"blocks": ["image->last"]},
    }
    lens: dict[str, Any] = {"class_path": "AnswerLens", "init_args": {}}
    for each in (flow, lens):
        each["init_args"] |= {"correct_only": False, "bootstrap": {"resamples": 20}}
    Path("both.json").write_text(json.dumps({"analysis": [flow, lens]}))

    arguments = ["analyze", "--model.checkpoint", tiny_llava, *questions, *QUIET]
    main([*arguments, "--config", "both.json"])

    printed = capsys.readouterr().out
    assert "information_flow · 4 samples" in printed and "answer_lens · 4 samples" in printed
    assert "image->last" in printed and "ceiling" in printed
    assert "Results are in runs/run/analysis/test-step0" in printed.replace("\n", "")
    assert max(map(len, printed.splitlines())) <= 80
