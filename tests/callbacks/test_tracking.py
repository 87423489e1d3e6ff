from __future__ import annotations

from pathlib import Path

import pytest
import wandb

from lightning_mllm.callbacks import EvaluationReport, PredictionTable
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.tracking.loggers import finish, make_loggers
from tests.callbacks.conftest import make_data, make_trainer
from tests.support.wandb_run_file import history


def test_tables_pictures_and_scores_are_in_the_wandb_run(
    tmp_path: Path, tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    trainer = make_trainer(tmp_path, [PredictionTable(images=2), EvaluationReport()])
    trainer.loggers = make_loggers(tmp_path, name="run", mode="offline")
    trainer.test(MLLMModule(tiny_llava), datamodule=make_data(tiny_llava), verbose=False)
    finish(trainer.loggers)
    wandb.teardown()  # waits until the background process has written everything

    keys = {key for row in history(tmp_path) for key in row}
    assert "test/likelihood/accuracy" in keys
    for logged in ("predictions/test", "predictions/test/sheet", "evaluation/test/generation/confusion"):
        assert any(key.startswith(logged + "/") for key in keys), logged
