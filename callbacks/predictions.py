"""Writes down what the model answered, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks.processes import gather_from_processes
from lightning_mllm.callbacks.trainer_state import (
    trainer_evaluated_split,
    trainer_evaluation_dir,
    trainer_figure,
    trainer_has_folder,
    trainer_label_set,
    trainer_mllm,
)
from lightning_mllm.callbacks.watched_split import watched_thumbnail
from lightning_mllm.evaluation import Predictions
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.figures.predictions import (
    PredictedAnswer,
    PredictionCaption,
    draw_predictions,
)
from lightning_mllm.tracking.loggers import log_image, log_table
from lightning_mllm.types import LabelSet, Sample

_SHEET_PIXELS = 336  # longer side of a picture in table and sheet


@dataclass(frozen=True)
class PredictionRow:
    """One row of `predictions.csv`.

    Attributes:
        sample_id: Id of the sample.
        prompt: The prompt as text.
        target: The right class or answer.
        verdicts: What each scorer says.
        kind: Kind of question; None if a class is predicted.
    """

    sample_id: str
    prompt: str
    target: str
    verdicts: tuple[PredictedAnswer, ...]
    kind: str | None = None

    def cells_by_column(self) -> dict[str, Any]:
        """Return column -> cell."""
        if self.kind is not None:
            (verdict,) = self.verdicts
            return {
                "sample_id": self.sample_id,
                "kind": self.kind,
                "prompt": self.prompt,
                "reference": self.target,
                "answer": verdict.answer,
                "correct": verdict.correct,
            }
        cells: dict[str, Any] = {
            "sample_id": self.sample_id,
            "prompt": self.prompt,
            "target": self.target,
        }
        for verdict in self.verdicts:
            cells[f"{verdict.scorer}/answer"] = verdict.answer
            cells[f"{verdict.scorer}/prediction"] = verdict.predicted
            cells[f"{verdict.scorer}/correct"] = verdict.correct
            if verdict.log_probability is not None:
                cells[f"{verdict.scorer}/log_probability"] = verdict.log_probability
        return cells


class PredictionTable(L.Callback):
    """Writes every answer of an evaluation to `evaluation/<stage>-step<k>/predictions.csv`.

    On free-form data only samples with a kind are scored, and only those are written. Where
    several samples are about one picture, a column says which.

    Args:
        images: Number of samples shown with image and prompt in W&B and, for a test, in
            `predictions.png`.
    """

    def __init__(self, images: int = 16) -> None:
        self.images = images
        self._rows: list[PredictionRow] = []

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
        labels = trainer_label_set(trainer)
        if trainer.sanity_checking or (labels is None and not outputs["answers"]):
            return
        texts = trainer_mllm(pl_module).tokenizer.batch_decode(
            batch.prompts().input_ids, skip_special_tokens=True
        )
        prompts: dict[str, str] = {}
        for sample_id, text in zip(batch.sample_ids, texts, strict=True):
            prompts[sample_id] = text.strip()
        if labels is not None:
            targets = batch.targets.tolist()
            self._rows += list_labelled_rows(prompts, targets, labels, outputs["predictions"])
        for answer in outputs["answers"]:
            verdict = PredictedAnswer("exact_match", answer.answer, "", answer.correct)
            prompt = prompts[answer.sample_id]
            row = PredictionRow(answer.sample_id, prompt, answer.reference, (verdict,), answer.kind)
            self._rows.append(row)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table and the pictures."""
        rows, self._rows = gather_from_processes(self._rows), []
        if not rows or not trainer.is_global_zero or not trainer_has_folder(trainer):
            return
        samples = {sample.id: sample for sample in trainer_evaluated_split(trainer)}
        by_id = {row.sample_id: row for row in rows}
        ordered = [by_id[sample_id] for sample_id in samples if sample_id in by_id]
        module = trainer_mllm(pl_module)
        path = trainer_evaluation_dir(trainer, module) / "predictions.csv"
        written = _cells_with_shared_pictures(ordered, samples)
        write_csv_file(path, list(written[0]), (cells.values() for cells in written))
        shown = [row for row in ordered if samples[row.sample_id].images][: self.images]
        if shown:
            _show(trainer, module, shown, samples, path)

    on_test_end = on_validation_end


def _cells_with_shared_pictures(
    rows: Sequence[PredictionRow], samples: Mapping[str, Sample]
) -> list[dict[str, Any]]:
    """Return column -> cell of each row, with the picture where several rows have the same."""
    pictures = [samples[row.sample_id].picture or row.sample_id for row in rows]
    cells = [row.cells_by_column() for row in rows]
    if len(set(pictures)) < len(rows):
        for own, picture in zip(cells, pictures, strict=True):
            own["picture"] = picture
    return cells


def _show(
    trainer: L.Trainer,
    module: MLLMModule,
    rows: Sequence[PredictionRow],
    samples: Mapping[str, Sample],
    path: Path,
) -> None:
    """Log rows with their pictures; draw them beside the CSV file, `path`, if this is a test."""
    pictures, table = [], []
    for row in rows:
        sample = samples[row.sample_id]
        picture = watched_thumbnail(trainer, sample, _SHEET_PIXELS)
        pictures.append(picture)
        table.append({"image": picture, "prompt": row.prompt, **row.cells_by_column()})
    key, step = f"predictions/{module.stage_name}", module.trained_steps
    cells = [list(named.values()) for named in table]
    log_table(trainer.loggers, key, list(table[0]), cells, step)
    if trainer.testing:
        captions = [PredictionCaption(row.prompt, row.target, row.verdicts) for row in rows]
        output = trainer_figure(trainer, path.parent, path.stem)
        sheet = draw_predictions(pictures, captions, output, title=path.parent.name)
        log_image(trainer.loggers, f"{key}/sheet", sheet, step)


def list_labelled_rows(
    prompts: Mapping[str, str],
    targets: Sequence[int],
    labels: LabelSet,
    predictions: Mapping[str, Predictions],
) -> Iterator[PredictionRow]:
    """Yield a row per sample with the class that each scorer predicts."""
    for index, (sample_id, prompt) in enumerate(prompts.items()):
        target = targets[index]
        verdicts = []
        for scorer, found in predictions.items():
            predicted = int(found.predicted[index])
            name = labels.names[predicted] if predicted >= 0 else ""
            score = None if found.scores is None else float(found.scores[index, predicted])
            verdicts.append(
                PredictedAnswer(scorer, found.answers[index], name, predicted == target, score)
            )
        yield PredictionRow(sample_id, prompt, labels.names[target], tuple(verdicts))
