"""Analyses in the predict loop of a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data.loading.sampler import limit_sampling
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.provenance import provenance
from lightning_mllm.tracking.analysis_run import AnalysisRun
from lightning_mllm.types import Sample


class Analyzing(L.Callback):
    """Runs analyses in the predict loop, which loads the weights and starts all processes."""

    def __init__(self, analyses: Sequence[Analysis], split: Split, earlier: Path | None) -> None:
        self.analyses, self.split, self.earlier = analyses, split, earlier
        self.results: list[AnalysisResult] = []
        self._run: AnalysisRun | None = None  # while it goes on

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what can't be analysed, before the model is loaded."""
        AnalysisRun.of(self.analyses, trainer, "analysis")  # refuses processes without a folder
        for analysis in self.analyses:
            analysis.check(_predicted_samples(trainer, self.split))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Get the analyses ready."""
        assert isinstance(pl_module, MLLMModule)  # `Trainer.analyze` has it so
        where = f"analysis/{self.split}-step{pl_module.trained_steps}"
        run = self._run = AnalysisRun.of(self.analyses, trainer, where)
        run.check_model(pl_module)
        source = provenance(pl_module, trainer.datamodule, self.split)  # type: ignore[attr-defined]
        earlier = None if self.earlier is None else self.earlier / where
        run.begin(pl_module.tokenizer, source, earlier)

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch, which is on the device already."""
        assert self._run is not None  # `on_predict_start` has it so
        self._run.update(pl_module, batch)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put together and write down what was found."""
        assert self._run is not None and isinstance(pl_module, MLLMModule)  # as above
        key, step = f"analysis/{self.split}", pl_module.trained_steps
        self.results = self._run.finish(trainer.loggers, key, step)
        self._run = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the other processes not to wait for this one."""
        if self._run is not None:
            self._run.fail()


def _predicted_samples(trainer: L.Trainer, split: Split) -> Sequence[Sample]:
    """Return the samples that the predict loop goes through, as `limit_predict_batches` says."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    size = data.eval_batch_size * trainer.world_size
    return limit_sampling(data.samples[split], trainer.limit_predict_batches, size)
