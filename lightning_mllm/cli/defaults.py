"""Default callbacks, checkpoints and the saved config of the runs of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback

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
from lightning_mllm.tracking.loggers import log_config
from lightning_mllm.tracking.secrets import mask_secrets


class Checkpointing(ModelCheckpoint):
    """Lightning's callback, but `last.ckpt` is always that of the last step."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last step if it is not written; a trial writes nothing."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's own folder and to W&B."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write `config.yaml`; Lightning calls this on rank zero only, before anything runs."""
        config = mask_secrets(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        file = Path(trainer.default_root_dir) / "config.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        log_config(trainer.loggers, config)


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
