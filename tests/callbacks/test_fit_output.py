"""What a fit shows: a line per epoch, one bar, one table at its end."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_mllm import progress
from lightning_mllm.callbacks import (
    Checkpointing,
    EpochLine,
    EvaluationReport,
    EvaluationSummary,
    LogInterval,
    TrainingBar,
)
from lightning_mllm.callbacks.epoch_line import format_loss, join_line
from lightning_mllm.callbacks.evaluation_summary import _deciding_metric
from lightning_mllm.callbacks.log_interval import log_interval_of
from lightning_mllm.callbacks.summary_table import (
    EvaluationScores,
    SummaryColumn,
    draw_summary_table,
)
from lightning_mllm.evaluation import ClassificationResult, Likelihood
from lightning_mllm.models.module import MLLMModule
from tests.support.feature_callbacks import Run, make_run
from tests.support.screen import captured_screen, printed_lines

LINE = re.compile(
    r"epoch (?P<epoch>\d+)/(?P<epochs>\d+) · train [\d.]+ · val [\d.]+ · "
    r"accuracy \d\.\d\d \[\d\.\d\d, \d\.\d\d\] · \d+ s( · \d+ s left)?"
)
TEXT = re.compile(r" · (train|val|test) ")  # bars have none


@dataclass
class Shown:
    """A fit and what it has printed."""

    run: Run
    lines: list[str]
    raw: str

    def begin(self, *words: str) -> list[str]:
        """Return the lines that begin with one of some words, without those of bars."""
        return [each for each in self.lines if each.startswith(words) and TEXT.search(each)]


class Refresh(L.Callback):
    """Draws the bars after each batch, not ten times a second."""

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        progress._DISPLAY.refresh()

    on_validation_batch_end = on_train_batch_end


def _fit(
    checkpoint: str,
    folder: Path,
    *callbacks: L.Callback,
    is_terminal: bool = False,
    before: bool = False,
    **options: Any,
) -> Shown:
    """Fit in steps of 8 of 16 samples: two steps per epoch."""
    summary = EvaluationSummary()
    run = make_run(checkpoint, folder, [*callbacks, summary, EpochLine(), LogInterval()], **options)
    run.module = MLLMModule(checkpoint, scorers=[Likelihood()])
    with captured_screen(is_terminal=is_terminal) as written:
        if before:
            run.trainer.validate(run.module, datamodule=run.data, verbose=False)
        run.fit()
        summary.print_table()
    return Shown(run, printed_lines(written), written.getvalue())


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Iterator[Shown]:
    """Three epochs, the last of a single step; the output is no terminal."""
    folder = tmp_path_factory.mktemp("piped")
    bars = [EvaluationReport(), TrainingBar()]
    options: dict[str, Any] = {"max_epochs": None, "max_steps": 5, "enable_progress_bar": True}
    yield _fit(tiny_llava, folder, *bars, before=True, **options)


@pytest.fixture(scope="module")
def on_terminal(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Iterator[Shown]:
    """Two epochs with two validations each, on a terminal of 80 columns."""
    folder = tmp_path_factory.mktemp("terminal")
    options: dict[str, Any] = {
        "is_terminal": True,
        "val_check_interval": 1,
        "enable_progress_bar": True,
    }
    yield _fit(tiny_llava, folder, TrainingBar(), Refresh(), **options)


def test_each_epoch_has_a_line_counted_from_1_also_where_steps_limit_the_fit(piped: Shown) -> None:
    lines = piped.begin("epoch")

    assert [line.split(" · ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all(LINE.fullmatch(line) for line in lines[:2])
    assert "val" not in lines[2]  # the last epoch has no validation


def test_the_time_left_is_said_until_the_end(piped: Shown) -> None:
    assert [line.endswith("left") for line in piped.begin("epoch")] == [True, True, False]


def test_what_is_piped_has_neither_bars_nor_control_characters(piped: Shown) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", piped.raw)
    assert not any("/5 " in line for line in piped.lines)
    assert not any(re.search(r"-[12]\b", line) for line in piped.begin("epoch", "step"))


def test_an_evaluation_before_the_fit_has_a_line(piped: Shown) -> None:
    (line,) = piped.begin("before ·")

    assert re.fullmatch(r"before · val [\d.]+ · accuracy .* · \d+ s", line)


def test_a_validation_within_an_epoch_has_a_line_and_that_at_its_end_is_the_epochs(
    on_terminal: Shown,
) -> None:
    starts = [line.split(" · ")[0] for line in on_terminal.begin("epoch", "step")]

    assert starts == ["step 1/4", "epoch 1/2", "step 3/4", "epoch 2/2"]


def test_nothing_on_a_terminal_is_wider_than_it_is(on_terminal: Shown) -> None:
    assert max(map(len, on_terminal.lines)) <= 80


def test_one_bar_counts_all_steps_and_one_below_it_those_of_a_validation(
    on_terminal: Shown,
) -> None:
    bars = [line for line in on_terminal.lines if "━" in line]

    assert any(re.match(r"epoch 2/2 · loss [\d.]+ .*━ +3/4", bar) for bar in bars)
    assert any(bar.startswith("validating") for bar in bars)
    assert {bar.split()[0] for bar in bars} <= {"epoch", "trying", "validating"}


def test_a_fit_of_few_steps_logs_each_of_them(piped: Shown) -> None:
    assert [row["step"] for row in piped.run.rows("metrics.csv") if row["train/loss"]] == list(
        "12345"
    )


def test_the_table_has_the_numbers_of_the_evaluations(piped: Shown) -> None:
    def row(label: str) -> list[str]:
        line = next(line for line in piped.lines if line.split()[:1] == [label])
        return re.findall(r"\d\.\d{3}(?= |$)", line)

    reports = [
        json.loads((piped.run.folder / "evaluation" / name / "scores.json").read_text())
        for name in ("val-step0", "val-step4")
    ]
    accuracies = [each["scorers"]["likelihood"]["accuracy"] for each in reports]
    assert [float(row("accuracy")[0]), float(row("accuracy")[-1])] == pytest.approx(
        accuracies, abs=5e-4
    )
    assert any(line.split() == ["step", "0", "4"] for line in piped.lines)  # not 5, its last
    assert any(line.split() == ["N", "8", "8"] for line in piped.lines)
    assert any("best validation: lowest val/loss" in line for line in piped.lines)


def test_a_fit_that_stops_early_says_why_and_its_best_is_that_of_its_checkpoints(
    tiny_llava: str, tmp_path: Path
) -> None:
    stopping = EarlyStopping("val/loss", patience=1, min_delta=1e3)
    metric: dict[str, Any] = {"monitor": "val/likelihood/accuracy", "mode": "max"}
    best = ModelCheckpoint(tmp_path, **metric, save_weights_only=True)

    shown = _fit(tiny_llava, tmp_path, stopping, best, max_epochs=9, enable_checkpointing=True)

    assert len(shown.begin("epoch")) == 2
    assert any(line.startswith("Stopped early, after step 4/18.") for line in shown.lines)
    assert any(line.endswith("highest val/likelihood/accuracy") for line in shown.lines)


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        ([Checkpointing()], ("val/loss", "min")),
        ([Checkpointing(best="val/a/f1", save_last=True)], ("val/a/f1", "max")),
        ([ModelCheckpoint(monitor="val/b", mode="max")], ("val/b", "max")),
        (
            [ModelCheckpoint(monitor="val/b"), Checkpointing(best="val/a/loss")],
            ("val/a/loss", "min"),
        ),
    ],
)
def test_the_best_of_the_table_is_that_of_the_best_checkpoint(
    checkpoints: list[Any], expected: tuple[str, str]
) -> None:
    trainer: Any = SimpleNamespace(checkpoint_callbacks=checkpoints, callback_metrics={"val/b": 1})

    assert _deciding_metric(trainer) == expected


@pytest.mark.parametrize("width", [None, 200, 80, 79, 70, 60])
def test_a_line_leaves_out_times_before_it_is_wider_than_the_terminal(width: int | None) -> None:
    parts = ["epoch 3/8", "train 0.41", "val 0.38", "accuracy 0.73 [0.69, 0.77]"]

    line = join_line(parts, ["12 s", "1 min left"], width)

    assert line.startswith(" · ".join(parts))
    assert line.endswith("12 s · 1 min left") == (width is None or width >= 82)
    assert width is None or len(line) <= max(width, 62)


@pytest.mark.parametrize(
    ("loss", "text"), [(12.345, "12.35"), (0.414, "0.41"), (0.0041, "0.0041"), (math.nan, "nan")]
)
def test_a_loss_has_the_digits_that_say_something(loss: float, text: str) -> None:
    assert format_loss(loss) == text


@pytest.mark.parametrize("steps", [1, 30, 99, 100, 320, 4999, 10**6])
def test_a_curve_has_a_hundred_points_or_all_steps(steps: int) -> None:
    interval = log_interval_of(steps)

    assert 1 <= interval <= 50
    assert steps // interval >= min(steps, 100)


def _columns(*steps: int) -> Sequence[SummaryColumn]:
    result = ClassificationResult.from_confusion(("a", "b"), np.array([[500, 3, 1], [0, 400, 1]]))
    results = {"generation": result, "likelihood": result}
    columns = []
    for step in steps:
        val, test = (
            EvaluationScores(split, step, 905, 0.31, results, None)
            for split in ("validation", "test")
        )
        columns.append(SummaryColumn("moment", {"validation": val, "test": test}))
    return columns


@pytest.mark.parametrize("steps", [(320,), (0, 320), (0, 280, 123_456)])
def test_the_table_of_a_fit_fits_on_a_terminal(steps: tuple[int, ...]) -> None:
    with captured_screen(is_terminal=True) as written:
        progress.console.print(draw_summary_table(_columns(*steps)))
    lines = printed_lines(written)

    assert max(map(len, lines)) <= 80
    assert sum("accuracy" in line for line in lines) == 4
    assert not any("…" in line for line in lines)
