"""The callback with which `Trainer.analyze` runs analyses in Lightning's predict loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data.images.patch_places import PatchFinder
from lightning_mllm.data.loading.sampler import limit_sampling
from lightning_mllm.data.loading.shown_samples import write_shown_samples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.provenance import provenance
from lightning_mllm.progress import ProgressBar, show_progress
from lightning_mllm.tracking.analysis_run import AnalysisRun
from lightning_mllm.types import Sample

logger = logging.getLogger(__name__)


class Analyzing(L.Callback):
    """Runs analyses in the predict loop, which loads the weights and starts all processes.

    Args:
        analyses: The analyses; one pass through the data serves all of them.
        split: The split that is analysed.
        earlier: Folder of a run that was stopped, which is continued.

    Attributes:
        results: What was found, on the first process only.
        folder: Where the files are; None for a trial that writes none.
    """

    def __init__(self, analyses: Sequence[Analysis], split: Split, earlier: Path | None) -> None:
        self.analyses, self.split, self.earlier = analyses, split, earlier
        self.results: list[AnalysisResult] = []
        self.folder: Path | None = None
        self._run: AnalysisRun | None = None  # while it goes on
        self._bar: ProgressBar | None = None
        self._shown = ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what can't be analysed, before the model is loaded."""
        AnalysisRun.of(self.analyses, trainer, "analysis")  # refuses processes without a folder
        if trainer.limit_test_batches != 1.0 and trainer.limit_predict_batches == 1.0:
            logger.warning(
                "An analysis goes through all samples of %s: limit_test_batches does not hold for "
                "it, limit_predict_batches does",
                self.split,
            )
        samples = _predicted_samples(trainer, self.split)
        for analysis in self.analyses:
            analysis.check(samples)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Get the analyses ready."""
        assert isinstance(pl_module, MLLMModule)  # `Trainer.analyze` has it so
        where = f"analysis/{self.split}-step{pl_module.trained_steps}"
        run = self._run = AnalysisRun.of(self.analyses, trainer, where)
        run.check_model(pl_module)
        source = provenance(pl_module, trainer.datamodule, self.split)  # type: ignore[attr-defined]
        earlier = None if self.earlier is None else self.earlier / where
        run.begin(pl_module.tokenizer, source, earlier)
        self.folder = run.folder
        count = math.ceil(len(_predicted_samples(trainer, self.split)) / trainer.world_size)
        shown = show_progress(f"Analysing samples of {self.split}", count)
        self._bar = self._shown.enter_context(shown)

    def on_predict_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in a batch, which is on the device already."""
        assert self._run is not None and self._bar is not None  # `on_predict_start` has it so
        self._run.update(pl_module, batch)
        self._bar.advance(len(batch))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put together and write down what was found."""
        assert self._run is not None and isinstance(pl_module, MLLMModule)  # as above
        self._run.settle(pl_module)
        self._shown.close()
        key, step = f"analysis/{self.split}", pl_module.trained_steps
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        patches = PatchFinder(data, self.split).find
        self.results = self._run.finish(trainer.loggers, key, step, patches)
        self._run = None
        if self.folder is not None and trainer.is_global_zero:
            samples = _predicted_samples(trainer, self.split)
            write_shown_samples(data.eval_collator, samples, self.folder)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the other processes not to wait for this one."""
        self._shown.close()
        if self._run is not None:
            self._run.fail()

    def check_results(self) -> None:
        """Refuse results of no sample, once they are written.

        Raises:
            ConfigError: An analysis has measured no sample.
        """
        empty = {result.name for result in self.results if not result.n_samples}
        reasons = [each.explain_nothing() for each in self.analyses if each.name in empty]
        if reasons:
            raise ConfigError(" ".join(reasons))


def _predicted_samples(trainer: L.Trainer, split: Split) -> Sequence[Sample]:
    """Return the samples that the predict loop goes through, as `limit_predict_batches` says."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    limit: int | float = trainer.limit_predict_batches
    return limit_sampling(data.samples[split], limit, data.eval_batch_size)
