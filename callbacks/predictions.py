"""Keeps what the model answered, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch.distributed as dist

from lightning_mllm.callbacks import access
from lightning_mllm.tracking.figures import Caption, Verdict, prediction_sheet
from lightning_mllm.tracking.files import write_rows
from lightning_mllm.tracking.log import log_image, log_table
from lightning_mllm.types import MultimodalBatch

_SHEET_PIXELS = 336  # longer side of a picture in table and sheet


@dataclass(frozen=True)
class _Row:
    sample_id: str
    prompt: str
    target: str
    verdicts: tuple[Verdict, ...]

    def cells(self) -> list[Any]:
        cells: list[Any] = [self.sample_id, self.target]
        for verdict in self.verdicts:
            cells += [verdict.answer, verdict.predicted, verdict.correct]
        return cells


class PredictionTable(L.Callback):
    """Writes every answer of an evaluation to `evaluation/<stage>-step<k>/predictions.csv`.

    Args:
        images: How many samples go, with image and prompt, to W&B and, of a test, into `predictions.png`.
    """

    def __init__(self, images: int = 16) -> None:
        self.images = images
        self._rows: list[_Row] = []

    def on_validation_batch_end(  # noqa: PLR0917 - as Lightning calls it
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the answers of a batch."""
        labels = access.label_set(trainer)
        if trainer.sanity_checking or labels is None:
            return
        prompts = access.mllm(pl_module).tokenizer.batch_decode(batch.prompts().input_ids, skip_special_tokens=True)
        for index, (sample_id, target) in enumerate(zip(batch.sample_ids, batch.targets.tolist(), strict=True)):
            verdicts = []
            for scorer, predictions in outputs["predictions"].items():
                predicted = int(predictions.predicted[index])
                name = labels.names[predicted] if predicted >= 0 else ""
                verdicts.append(Verdict(scorer, predictions.answers[index], name, correct=predicted == target))
            self._rows.append(_Row(sample_id, prompts[index].strip(), labels.names[target], tuple(verdicts)))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table and the pictures."""
        rows, self._rows = _of_all_processes(self._rows), []
        if not rows or not trainer.is_global_zero:
            return
        samples = {sample.id: sample for sample in access.samples(trainer)}
        by_id = {row.sample_id: row for row in rows}
        ordered = [by_id[sample_id] for sample_id in samples if sample_id in by_id]
        columns = ["sample_id", "target"]
        for verdict in rows[0].verdicts:
            columns += [f"{verdict.scorer}/{field}" for field in ("answer", "prediction", "correct")]
        module = access.mllm(pl_module)
        path = access.evaluation_dir(trainer, module) / "predictions.csv"
        write_rows(path, columns, [row.cells() for row in ordered])

        shown = [row for row in ordered if samples[row.sample_id].images][: self.images]
        if not shown:
            return
        pictures = [access.picture(trainer, samples[row.sample_id], _SHEET_PIXELS) for row in shown]
        table = [[picture, row.prompt, *row.cells()] for picture, row in zip(pictures, shown, strict=True)]
        key = f"predictions/{module.stage_name}"
        log_table(trainer.loggers, key, ["image", "prompt", *columns], table, trainer.global_step)
        if not trainer.testing:
            return
        captions = [Caption(row.prompt, row.target, row.verdicts) for row in shown]
        sheet = prediction_sheet(pictures, captions, path.with_suffix(".png"), title=path.parent.name)
        log_image(trainer.loggers, f"{key}/sheet", sheet, trainer.global_step)

    on_test_end = on_validation_end


def _of_all_processes(rows: list[_Row]) -> Sequence[_Row]:
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    gathered: list[list[_Row]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
