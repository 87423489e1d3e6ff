"""The callbacks that the command line adds by itself, for scripts and notebooks, too."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback, ProgressBar

from lightning_mllm.callbacks.checkpointing import Checkpointing
from lightning_mllm.callbacks.epoch_line import EpochLine
from lightning_mllm.callbacks.evaluation_report import EvaluationReport
from lightning_mllm.callbacks.evaluation_summary import EvaluationSummary
from lightning_mllm.callbacks.freeze_audit import FreezeAudit
from lightning_mllm.callbacks.learning_audit import LearningAudit
from lightning_mllm.callbacks.learning_curve import LearningCurve
from lightning_mllm.callbacks.learning_rate_log import LearningRateLog
from lightning_mllm.callbacks.log_interval import LogInterval
from lightning_mllm.callbacks.predictions import PredictionTable
from lightning_mllm.callbacks.throughput import Throughput
from lightning_mllm.callbacks.training_bar import TrainingBar


def default_callbacks(*own: Callback) -> list[Callback]:
    """Return your callbacks, and those with which the command line runs.

    They show what is frozen, a bar, a line per epoch and the scores; they write scores, answers,
    curves and checkpoints into the run's folder, or nothing in a trial with `fast_dev_run`.

    Args:
        own: Callbacks that are added; one takes the place of a default one of its class or of a
            subclass, and a progress bar that of ours.
    """
    defaults: list[Callback] = [
        FreezeAudit(),
        Throughput(),
        EvaluationSummary(),
        EpochLine(),
        LogInterval(),
        LearningRateLog(),
        PredictionTable(),
        EvaluationReport(),
        LearningAudit(),
        LearningCurve(),
        Checkpointing(save_last=True, every_n_train_steps=500),
    ]
    if not any(isinstance(each, ProgressBar) for each in own):
        defaults.insert(0, TrainingBar())
    classes = tuple(type(callback) for callback in own)
    return [*own, *(callback for callback in defaults if not isinstance(callback, classes))]
