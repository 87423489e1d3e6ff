from __future__ import annotations

from pathlib import Path

import pytest

from lightning_mllm.callbacks import EvaluationReport, PredictionTable
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.tracking.loggers import finish_loggers, make_loggers
from tests.callbacks.conftest import make_data, make_trainer
from tests.support.fake_wandb import fake_wandb


def test_tables_pictures_and_scores_are_in_the_wandb_run(
    tmp_path: Path, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake_wandb(monkeypatch)
    trainer = make_trainer(tmp_path, [PredictionTable(images=2), EvaluationReport()])
    trainer.loggers = make_loggers(tmp_path, name="run", mode="offline")
    trainer.test(MLLMModule(tiny_llava), datamodule=make_data(tiny_llava), verbose=False)
    finish_loggers(trainer.loggers)

    (run,) = runs
    assert run.finished
    assert run.keys >= {
        "test/likelihood/accuracy",
        "predictions/test",
        "predictions/test/sheet",
        "evaluation/test/generation/confusion",
    }
