"""Dissects the model while it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

import lightning as L

from lightning_mllm.analysis.base import Analysis, AnalysisResult
from lightning_mllm.callbacks import access
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.provenance import provenance
from lightning_mllm.tracking.analysis_run import AnalysisRun, check_names
from lightning_mllm.types import MultimodalBatch


class RunAnalysis(L.Callback):
    """Runs analyses before training, at validations of a fit, the last one always, and after a test.

    They go through the samples that the model itself is evaluated on (`access.tapped_samples`): the validation split,
    after a test the test split. Their files are in the run's folder, `analysis/<split>-step<k>/<analysis>/`.

    Args:
        analysis: What is done, once through the data for all.
        every_n_epochs: Epochs between runs of it.
        before_training: Whether the untrained model is dissected too.
    """

    def __init__(
        self, analysis: Analysis | list[Analysis], *, every_n_epochs: int = 1, before_training: bool = True
    ) -> None:
        self.analyses = [analysis] if isinstance(analysis, Analysis) else list(analysis)
        check_names(self.analyses)
        if every_n_epochs < 1:
            raise ConfigError(f"RunAnalysis.every_n_epochs must be at least 1, not {every_n_epochs}.")
        self.every_n_epochs, self.before_training = every_n_epochs, before_training

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Dissect the untrained model."""
        if self.before_training and access.starts_untrained(trainer, access.mllm(pl_module)):
            self._run(trainer, pl_module, "val")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Dissect the model as it is."""
        if access.is_due(trainer, self.every_n_epochs):
            self._run(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Dissect the model on the test split."""
        self._run(trainer, pl_module, "test")

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule, split: access.Split) -> list[AnalysisResult]:
        """Go through a split once; return what was found, on the first process only."""
        module = access.mllm(pl_module)
        loader: Iterable[MultimodalBatch] = trainer.datamodule.plain_dataloader(split)  # type: ignore[attr-defined]
        batches = math.ceil(len(access.tapped_samples(trainer, split)) / trainer.datamodule.eval_batch_size)  # type: ignore[attr-defined]
        where = f"analysis/{split}-step{module.trained_steps}"
        folder = access.run_dir(trainer) / where if trainer.loggers else None
        source = provenance(module, trainer.datamodule, split)  # type: ignore[attr-defined]
        shares = 1 if trainer.fast_dev_run else trainer.world_size  # type: ignore[attr-defined]  # a trial has no folder
        run = AnalysisRun(self.analyses, folder, source, trainer.global_rank, shares, trainer.strategy.barrier)
        run.begin(module.tokenizer)
        was_training = module.training
        module.eval()
        try:
            with module.adapted.autocast(module.device.type):
                for batch in islice(loader, batches):
                    for analysis in self.analyses:
                        analysis.update(module.backbone, batch.to(module.device))
        finally:
            module.train(was_training)
        return run.finish(trainer.loggers, f"analysis/{split}", trainer.global_step)
