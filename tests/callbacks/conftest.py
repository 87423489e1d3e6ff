"""A short real fit: tiny checkpoint, digits, projector only, with all callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lightning_mllm.callbacks import (
    EvaluationReport,
    FreezeAudit,
    LearningCurve,
    PredictionTable,
    Throughput,
)
from lightning_mllm.data import Digits
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.tracking.loggers import make_loggers
from tests.support.figures import drawn_figures

EVALUATED = 8  # samples per evaluation


@dataclass
class Study:
    """A finished run: zero-shot test, fit, test."""

    folder: Path
    trainer: L.Trainer
    module: MLLMModule
    data: Digits
    progress_bar: dict[str, Any]


def make_trainer(folder: Path, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder,
        logger=make_loggers(folder, name="run", mode="disabled"),
        callbacks=callbacks,
        accelerator="cpu",
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        limit_test_batches=2,
        **{
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "max_steps": 4,
            "limit_val_batches": 2,
            **options,
        },
    )


def make_data(checkpoint: str) -> Digits:
    return Digits(checkpoint=checkpoint, batch_size=4, eval_batch_size=4, image_size=28)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_llava: str) -> Study:
    folder = tmp_path_factory.mktemp("study")
    callbacks: list[L.Callback] = [
        PredictionTable(images=3),
        EvaluationReport(),
        LearningCurve(),
        Throughput(every_n_steps=2),
        FreezeAudit(),
    ]
    trainer = make_trainer(folder, callbacks, val_check_interval=2)
    module, data = MLLMModule(tiny_llava), make_data(tiny_llava)
    trainer.validate(module, datamodule=data, verbose=False)
    module.test_prefix = "zero_shot"
    trainer.test(module, datamodule=data, verbose=False)
    module.test_prefix = "test"
    with drawn_figures():
        trainer.fit(module, datamodule=data)
        progress_bar = dict(trainer.progress_bar_metrics)
        trainer.test(module, datamodule=data, verbose=False)
    return Study(folder, trainer, module, data, progress_bar)
