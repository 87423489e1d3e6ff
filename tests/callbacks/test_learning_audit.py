from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest

from lightning_mllm.callbacks import LearningAudit
from lightning_mllm.models.freeze import Lora
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.optimisation.schedule import LearningRates
from tests.callbacks.conftest import make_data, make_trainer


def _fit(checkpoint: str, folder: Path, max_steps: int, **options: Any) -> Path:
    """Fit without validation and return where the tensors are named that never moved."""
    trainer = make_trainer(folder, [LearningAudit()], max_steps=max_steps, limit_val_batches=0)
    trainer.fit(MLLMModule(checkpoint, scorers=(), **options), datamodule=make_data(checkpoint))
    return folder / "never_moved.csv"


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_what_learns_is_not_named(
    tiny_llava: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not _fit(tiny_llava, tmp_path, max_steps=2).exists()
    assert not _warnings(caplog)


def test_what_never_moved_is_named_at_the_end(
    tiny_llava: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Lora(
        rank=2, modules=["q_proj"], projector=True
    )  # B moves in the second step, A would in the third
    path = _fit(tiny_llava, tmp_path, max_steps=2, policy=policy)

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["part"] for row in rows} == {"llm lora"}
    assert all(".q_proj.lora_A." in row["tensor"] for row in rows)
    (warning,) = _warnings(caplog)
    assert (
        f"In the 2 steps of this fit {len(rows)} of {2 * len(rows) + 4} trained tensors never moved"
        in warning
    )
    assert rows[0]["tensor"] in warning


def test_a_rate_that_rounds_every_step_away_moves_no_matrix(
    tiny_llava: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _fit(tiny_llava, tmp_path, max_steps=2, learning_rates=LearningRates(projector=1e-30))

    (warning,) = _warnings(caplog)
    assert "2 of 4 trained tensors never moved" in warning  # the biases, which are 0, have moved
    assert "linear_1.weight, model.multi_modal_projector.linear_2.weight (" in warning


def test_a_trial_is_no_fit_and_leaves_no_file(
    tiny_llava: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, [LearningAudit()], fast_dev_run=True, limit_val_batches=0)

    trainer.fit(MLLMModule(tiny_llava, scorers=()), datamodule=make_data(tiny_llava))

    assert not (tmp_path / "never_moved.csv").exists()
    assert not _warnings(caplog)
