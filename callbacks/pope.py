"""Scores the answers of a test as POPE does: does the model see objects that are not there?"""

from __future__ import annotations

from typing import Any

import lightning as L

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks.score_tables import write_score_summary
from lightning_mllm.callbacks.trainer_state import (
    trainer_datamodule,
    trainer_mllm,
    trainer_writes_results,
)
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.hallucination.pope import (
    SAMPLINGS,
    SCORES,
    PopeMetrics,
    Reading,
    pope_sampling,
)


class PopeReport(L.Callback):
    """Writes POPE's scores after a test: `pope.json` in the folder of the evaluation.

    The questions are the samples whose kind is `random`, `popular` or `adversarial`, or ends with
    a slash and one of these words. Their answer is yes or no. The answers are those that the
    evaluation scores anyway.

    Args:
        reading: How yes or no is read from an answer, see `PopeMetrics`.
    """

    def __init__(self, reading: Reading = "named") -> None:
        self._metric = PopeMetrics(reading=reading)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that there are questions of presence, and forget an earlier test."""
        kinds = trainer_datamodule(trainer).kinds
        if not any(map(pope_sampling, kinds)):
            raise ConfigError(
                f"PopeReport needs samples of a kind that ends with {', '.join(SAMPLINGS)}; the "
                f"data have {', '.join(kinds) or 'no kinds'}. Name the kinds of questions so, or "
                "leave the callback out."
            )
        self._metric.to(pl_module.device).reset()

    def on_test_batch_end(  # noqa: PLR0917 - as Lightning calls it
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the answers of a batch."""
        self._metric.update(outputs["answers"])

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and log the scores."""
        result = self._metric.result()
        if result is None or not trainer_writes_results(trainer):
            return
        summary = {"reading": self._metric.reading, **result.summary()}
        logged = {name: result.overall.value(name) for name in SCORES}
        write_score_summary(trainer, trainer_mllm(pl_module), "pope", summary, logged)
