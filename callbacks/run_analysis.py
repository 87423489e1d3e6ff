"""Dissects the model while it is trained."""

from __future__ import annotations

from typing import Any

import lightning as L

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.callbacks import features, trainer_state
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.provenance import provenance
from lightning_mllm.tracking.analysis_run import AnalysisRun, check_names


class RunAnalysis(L.Callback):
    """Runs analyses before training, at validations of a fit, the last one always, and after a test.

    They go through the samples that the model itself is evaluated on (`features.tapped_samples`): the validation split,
    after a test the test split. Their files are in the run's folder, `analysis/<split>-step<k>/<analysis>/`.

    With `data` they go through a split of these instead, whole: the questions of GQA, say, while the model is trained
    on something else. Nothing is run after a test then, whose weights are those of the last validation. The files are
    in `analysis/<class of the data>-<split>-step<k>/<analysis>/`.

    Args:
        analysis: What is done, once through the data for all.
        data: Other data than the Trainer's, of the model's checkpoint.
        split: The split of `data`, by default the test split.
        every_n_epochs: Epochs between runs of it.
        before_training: Whether the untrained model is dissected too.

    Raises:
        ConfigError: Two analyses have one name, or an option has a value that it can't have.
    """

    def __init__(
        self,
        analysis: Analysis | list[Analysis],
        *,
        data: MLLMDataModule | None = None,
        split: Split | None = None,
        every_n_epochs: int = 1,
        before_training: bool = True,
    ) -> None:
        self.analyses = [analysis] if isinstance(analysis, Analysis) else list(analysis)
        check_names(self.analyses)
        if every_n_epochs < 1:
            raise ConfigError(f"RunAnalysis.every_n_epochs must be at least 1, not {every_n_epochs}.")
        if data is None and split is not None:
            raise ConfigError(f"RunAnalysis.split is {split!r} of data of its own, and there are none. Give it `data`.")
        self.data, self.every_n_epochs, self.before_training = data, every_n_epochs, before_training
        self.place = "" if data is None else f"{type(data).__name__}-"  # begins the names of folders
        self.splits: dict[str, Split] = {"fit": "val", "test": "test"}  # stage -> what is gone through
        if data is not None:
            self.splits = {"fit": split or "test"}
        self._running: AnalysisRun | None = None  # while it is under way

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set up data of their own; refuse at the start what would be refused in the middle of a run.

        Raises:
            ConfigError: The fit has no validation, and so no moment for this; or as said by the data and the analyses.
        """
        if stage not in self.splits:
            return
        AnalysisRun.of(self.analyses, trainer, "analysis")  # not on several processes without a folder
        check_names([analysis for each in self._beside(trainer) for analysis in each.analyses])
        if stage == "fit":
            trainer_state.check_validation(trainer, "RunAnalysis")
        split = self.splits[stage]
        if self.data is not None:
            features.set_up_beside(trainer, trainer_state.mllm(pl_module), self.data, split)
        for analysis in self.analyses:
            analysis.check(features.tapped_samples(trainer, split, self.data))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Dissect the untrained model."""
        if self.before_training and trainer_state.starts_untrained(trainer, trainer_state.mllm(pl_module)):
            self._run(trainer, pl_module, "fit")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Dissect the model as it is."""
        if trainer_state.is_due(trainer, self.every_n_epochs):
            self._run(trainer, pl_module, "fit")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Dissect the model on the test split."""
        self._run(trainer, pl_module, "test")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell the other processes not to wait for this one."""
        if self._running is not None:
            self._running.fail()
            self._running = None

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> list[AnalysisResult]:
        """Go through the split of a stage once; return what was found, on the first process only."""
        if stage not in self.splits:
            return []
        module, split = trainer_state.mllm(pl_module), self.splits[stage]
        batches = features.tapped_batches(trainer, split, self.data)
        data: Any = trainer.datamodule if self.data is None else self.data  # type: ignore[attr-defined]
        where = f"analysis/{self.place}{split}"
        run = self._running = AnalysisRun.of(self.analyses, trainer, f"{where}-step{module.trained_steps}")
        run.begin(module.tokenizer, provenance(module, data, split))
        was_training = module.training
        module.eval()
        try:
            with module.adapted.autocast(module.device.type):
                for batch in batches:
                    moved = batch.to(module.device)
                    for analysis in self.analyses:
                        analysis.update(module.backbone, moved)
        finally:
            module.train(was_training)
        results = run.finish(trainer.loggers, where, module.trained_steps)
        self._running = None
        return results

    def _beside(self, trainer: L.Trainer) -> list[RunAnalysis]:
        """Return the callbacks that write where this one does, itself among them."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [each for each in callbacks if isinstance(each, RunAnalysis)]
        return [each for each in others if (each.place, each.splits) == (self.place, self.splits)]
