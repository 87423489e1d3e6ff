"""Keeps what the model answered, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L

from lightning_mllm.callbacks import processes, trainer_state
from lightning_mllm.evaluation import Predictions
from lightning_mllm.store.files import write_rows
from lightning_mllm.tracking.figures.predictions import Caption, ScoredAnswer, prediction_sheet
from lightning_mllm.tracking.loggers import log_image, log_table
from lightning_mllm.types import LabelSet, MultimodalBatch

_SHEET_PIXELS = 336  # longer side of a picture in table and sheet


@dataclass(frozen=True)
class _Row:
    sample_id: str
    prompt: str
    target: str
    verdicts: tuple[ScoredAnswer, ...]
    kind: str | None = None  # of an open answer

    def named_cells(self) -> dict[str, Any]:
        """Return column -> cell."""
        if self.kind is not None:
            (verdict,) = self.verdicts
            question = {"sample_id": self.sample_id, "kind": self.kind, "prompt": self.prompt}
            return {**question, "reference": self.target, "answer": verdict.answer, "correct": verdict.correct}
        cells: dict[str, Any] = {"sample_id": self.sample_id, "target": self.target}
        for verdict in self.verdicts:
            cells[f"{verdict.scorer}/answer"] = verdict.answer
            cells[f"{verdict.scorer}/prediction"] = verdict.predicted
            cells[f"{verdict.scorer}/correct"] = verdict.correct
        return cells


class PredictionTable(L.Callback):
    """Writes every answer of an evaluation to `evaluation/<stage>-step<k>/predictions.csv`.

    On free-form data they are those that are scored: of the samples with a kind.

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
        labels = trainer_state.label_set(trainer)
        if trainer.sanity_checking or (labels is None and not outputs["answers"]):
            return
        texts = trainer_state.mllm(pl_module).tokenizer.batch_decode(
            batch.prompts().input_ids, skip_special_tokens=True
        )
        prompts = {sample_id: text.strip() for sample_id, text in zip(batch.sample_ids, texts, strict=True)}
        if labels is not None:
            self._rows += _labelled_rows(prompts, batch.targets.tolist(), labels, outputs["predictions"])
        for answer in outputs["answers"]:
            verdict = ScoredAnswer("exact_match", answer.answer, "", answer.correct)
            prompt = prompts[answer.sample_id]
            self._rows.append(_Row(answer.sample_id, prompt, answer.reference, (verdict,), answer.kind))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table and the pictures."""
        rows, self._rows = processes.of_all_processes(self._rows), []
        if not rows or not trainer.is_global_zero:
            return
        samples = {sample.id: sample for sample in trainer_state.samples(trainer)}
        by_id = {row.sample_id: row for row in rows}
        ordered = [by_id[sample_id] for sample_id in samples if sample_id in by_id]
        columns = list(rows[0].named_cells())
        module = trainer_state.mllm(pl_module)
        path = trainer_state.evaluation_dir(trainer, module) / "predictions.csv"
        write_rows(path, columns, [row.named_cells().values() for row in ordered])

        shown = [row for row in ordered if samples[row.sample_id].images][: self.images]
        if not shown:
            return
        pictures = [trainer_state.picture(trainer, samples[row.sample_id], _SHEET_PIXELS) for row in shown]
        table = [
            {"image": picture, "prompt": row.prompt, **row.named_cells()}
            for picture, row in zip(pictures, shown, strict=True)
        ]
        key = f"predictions/{module.stage_name}"
        log_table(trainer.loggers, key, list(table[0]), [list(cells.values()) for cells in table], module.trained_steps)
        if not trainer.testing:
            return
        captions = [Caption(row.prompt, row.target, row.verdicts) for row in shown]
        sheet = prediction_sheet(pictures, captions, path.with_suffix(".png"), title=path.parent.name)
        log_image(trainer.loggers, f"{key}/sheet", sheet, module.trained_steps)

    on_test_end = on_validation_end


def _labelled_rows(
    prompts: Mapping[str, str], targets: Sequence[int], labels: LabelSet, predictions: Mapping[str, Predictions]
) -> Iterator[_Row]:
    for index, ((sample_id, prompt), target) in enumerate(zip(prompts.items(), targets, strict=True)):
        verdicts = []
        for scorer, said in predictions.items():
            predicted = int(said.predicted[index])
            name = labels.names[predicted] if predicted >= 0 else ""
            verdicts.append(ScoredAnswer(scorer, said.answers[index], name, correct=predicted == target))
        yield _Row(sample_id, prompt, labels.names[target], tuple(verdicts))
