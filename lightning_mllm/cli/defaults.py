"""Default callbacks of the runs of the command line."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback, ProgressBar

from lightning_mllm.callbacks import (
    EpochLine,
    EvaluationReport,
    EvaluationSummary,
    FreezeAudit,
    LearningAudit,
    LearningCurve,
    LearningRateLog,
    LogInterval,
    PredictionTable,
    Throughput,
    TrainingBar,
)


def add_defaults(
    chosen: list[Callback], *, writes: bool, shows_progress: bool, fits: bool, sets_interval: bool
) -> list[Callback]:
    """Return the callbacks of a config, and each default one whose class is not among them.

    Args:
        chosen: Callbacks that the config names.
        writes: Whether the run keeps files; a trial with `fast_dev_run` does not.
        shows_progress: Whether there is a progress bar; one that the config names replaces ours.
        fits: Whether the command trains.
        sets_interval: Whether the config leaves open how often numbers are logged.
    """
    defaults: list[Callback] = [FreezeAudit(), Throughput(), EvaluationSummary()]
    if shows_progress and not any(isinstance(each, ProgressBar) for each in chosen):
        defaults.insert(0, TrainingBar())
    if fits:
        defaults.append(EpochLine())
    if sets_interval:
        defaults.append(LogInterval())
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
