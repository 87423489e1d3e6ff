"""What a script gets with the default callbacks: what the command line shows and writes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar

from lightning_mllm import MLLMModule, Run, Trainer, default_callbacks
from lightning_mllm.callbacks import (
    Checkpointing,
    EvaluationReport,
    LogInterval,
    PredictionTable,
    TrainingBar,
)
from lightning_mllm.evaluation import Likelihood
from tests.callbacks.conftest import make_data
from tests.support.command_line import files_below, isolate


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


class Breaking(L.Callback):
    """Ends a fit after two steps with an error."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("out of luck")


def fit(checkpoint: str, *own: L.Callback, test_after: bool = False, **options: Any) -> Trainer:
    """Fit three steps with the default callbacks."""
    small = {"max_steps": 3, "accelerator": "cpu", "num_sanity_val_steps": 0}
    limits = {"limit_train_batches": 3, "limit_val_batches": 1, "limit_test_batches": 1}
    callbacks = default_callbacks(*own)
    trainer = Trainer(**{**small, **limits, **options, "callbacks": callbacks})
    module = MLLMModule(checkpoint, scorers=[Likelihood()])
    trainer.fit(module, datamodule=make_data(checkpoint), test_after=test_after)
    return trainer


def test_a_script_shows_and_writes_what_the_command_line_does(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(tiny_llava, run=Run(name="script", wandb="disabled"), test_after=True)

    shown = capsys.readouterr().out
    assert "What ProjectorOnly() trains" in shown
    assert re.search(r"^epoch 1/1 · train .* · val .* · accuracy ", shown, re.MULTILINE)
    assert shown.count("brackets: 95 % intervals") == 1
    assert shown.splitlines()[-1] == "Results are in runs/script: learning_curve.png"
    assert "Epoch 0" not in shown
    folder = Path(trainer.default_root_dir)
    for file in ("learning_curve.png", "metrics.csv", "checkpoints/last.ckpt"):
        assert (folder / file).is_file(), file
    for stage in ("val", "test"):
        written = {path.name for path in (folder / "evaluation" / f"{stage}-step3").iterdir()}
        assert {"scores.json", "predictions.csv"} <= written


def test_an_evaluation_alone_shows_its_table_once_and_no_line(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(
        run=Run(wandb="disabled"),
        accelerator="cpu",
        limit_val_batches=1,
        callbacks=default_callbacks(),
    )
    module = MLLMModule(tiny_llava, scorers=[Likelihood()])
    trainer.validate(module, datamodule=make_data(tiny_llava), verbose=False)

    shown = capsys.readouterr().out
    assert shown.count("validation, step 0") == 1
    assert "before ·" not in shown


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"logger": False}])
def test_without_a_folder_nothing_is_written_into_the_current_one(
    tiny_llava: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    fit(tiny_llava, enable_checkpointing=False, **options)

    assert not files_below(tmp_path)


def test_bars_and_checkpoints_that_are_switched_off_are_left_out() -> None:
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(logger=False, callbacks=default_callbacks(), **options)

    assert trainer.progress_bar_callback is None
    assert not trainer.checkpoint_callbacks


@pytest.mark.parametrize(("given", "used"), [({}, 1), ({"log_every_n_steps": 7}, 7)])
def test_an_interval_of_logging_that_is_given_stays(given: dict[str, Any], used: int) -> None:
    trainer: Any = Trainer(logger=False, callbacks=default_callbacks(), **given)
    LogInterval().setup(trainer, L.LightningModule(), "fit")

    assert trainer.log_every_n_steps == used


def test_a_script_that_is_stopped_is_told_how_it_can_go_on(
    tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(tiny_llava, Breaking(), run=Run(name="stopped", wandb="disabled"))

    how = 'step 2: trainer.fit(..., ckpt_path="runs/stopped/checkpoints/last.ckpt")'
    assert f"To go on from {how}" in capsys.readouterr().out.splitlines()
    assert Path("runs/stopped/checkpoints/last.ckpt").is_file()


def test_each_default_callback_is_there_once() -> None:
    counts = Counter(map(type, default_callbacks()))

    assert {Checkpointing, EvaluationReport, LogInterval, PredictionTable, TrainingBar} <= {*counts}
    assert set(counts.values()) == {1}


@pytest.mark.parametrize(
    ("own", "replaced"),
    [
        (PredictionTable(images=2), PredictionTable),
        (TQDMProgressBar(), TrainingBar),
        (RichProgressBar(), TrainingBar),
        (ModelCheckpoint(), Checkpointing),
    ],
)
def test_ones_own_callback_takes_the_place_of_a_default(
    own: L.Callback, replaced: type[L.Callback]
) -> None:
    callbacks = default_callbacks(own)

    assert [each for each in callbacks if isinstance(each, (type(own), replaced))] == [own]
    assert len(callbacks) == len(default_callbacks())
