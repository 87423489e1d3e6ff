"""Default callbacks of the runs of the command line."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback, RichProgressBar

from lightning_mllm.callbacks import (
    EvaluationReport,
    FreezeAudit,
    LearningAudit,
    LearningCurve,
    LearningRateLog,
    PredictionTable,
    Throughput,
)


def add_defaults(chosen: list[Callback], *, writes: bool, shows_progress: bool) -> list[Callback]:
    """Return the callbacks of a config, and each default one whose class is not among them.

    Args:
        chosen: Callbacks that the config names.
        writes: Whether the run keeps files; a trial with `fast_dev_run` does not.
        shows_progress: Whether there is a progress bar.
    """
    defaults: list[Callback] = [FreezeAudit(), Throughput()]
    if shows_progress:
        defaults.insert(0, RichProgressBar())
    if writes:
        defaults += [
            LearningRateLog(),
            PredictionTable(),
            EvaluationReport(),
            LearningAudit(),
            LearningCurve(),
        ]
    classes = tuple(type(callback) for callback in chosen)
    return [*chosen, *(callback for callback in defaults if not isinstance(callback, classes))]
