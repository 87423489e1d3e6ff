"""Answers the samples of the predict loop, with or without labels, and writes the answers down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.callbacks.predictions import PredictionRow, list_labelled_rows
from lightning_mllm.callbacks.processes import gather_from_processes
from lightning_mllm.callbacks.trainer_state import (
    trainer_answers,
    trainer_datamodule,
    trainer_label_set,
    trainer_mllm,
    trainer_run_dir,
    trainer_writes_results,
)
from lightning_mllm.data.datasets.asked import AskedPictures
from lightning_mllm.errors import ConfigError
from lightning_mllm.evaluation.evaluator import EvaluatedBatch
from lightning_mllm.progress import console
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.tracking.figures.predictions import PredictedAnswer

_SHOWN = 5  # classes that the last line counts
_OF_LABELS = ("target", "reference", "correct")  # columns of samples with a right answer
_OFTEN_EMPTY = ("kind", "reference")  # columns of free-form samples


class AnswerTable(L.Callback):
    """Writes the model's answer to each sample of `predict` to `predictions.csv`.

    The file is in the run's folder, in `predict/<split>-step<k>/`. It has the columns of a test's
    `predictions.csv`, but for those that need a right answer where samples have none. Samples that
    `test` would not score are answered, too.

    Args:
        max_new_tokens: Length at which the answer to a free-form sample without a kind is cut.

    Attributes:
        path: The file that was written last; None before.
    """

    def __init__(self, max_new_tokens: int = 128) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"AnswerTable.max_new_tokens is {max_new_tokens}; give 1 or more.")
        self.max_new_tokens = max_new_tokens
        self.path: Path | None = None
        self._rows: list[PredictionRow] = []

    def on_predict_batch_end(  # noqa: PLR0917 - as Lightning calls it
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MultimodalBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Answer a batch."""
        if not trainer_answers(trainer):
            return
        module = trainer_mllm(pl_module)
        found = module.answer(batch, self.max_new_tokens)
        texts = module.tokenizer.batch_decode(batch.prompts().input_ids, skip_special_tokens=True)
        prompts: dict[str, str] = {}
        for sample_id, text in zip(batch.sample_ids, texts, strict=True):
            prompts[sample_id] = text.strip()
        labels = trainer_label_set(trainer)
        if labels is not None:
            targets = batch.targets.tolist()
            self._rows += list_labelled_rows(prompts, targets, labels, found.predictions)
        self._rows += _list_free_rows(prompts, found)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table, and say where it is."""
        rows, self._rows = gather_from_processes(self._rows), []
        if not rows or not trainer_writes_results(trainer):
            return
        data, module = trainer_datamodule(trainer), trainer_mllm(pl_module)
        by_id = {row.sample_id: row.cells_by_column() for row in rows}
        ordered = []
        for sample in data.samples[data.predict_split]:
            cells = by_id.get(sample.id)
            if cells is None:
                continue
            if sample.conversation and not cells.get("reference"):
                cells["reference"] = sample.conversation[-1].text.strip()
            ordered.append(cells)
        known: dict[str, None] = {}
        for cells in ordered:
            known |= dict.fromkeys(cells)
        columns = list(known)
        if isinstance(data, AskedPictures):
            columns = [name for name in columns if name.rpartition("/")[2] not in _OF_LABELS]
        empty = set(_OFTEN_EMPTY)
        for cells in ordered:
            empty -= {name for name in empty if cells.get(name)}
        empty |= {"correct"} if "kind" in empty else set()
        columns = [name for name in columns if name not in empty]
        name = "pictures" if isinstance(data, AskedPictures) else data.predict_split
        folder = trainer_run_dir(trainer) / "predict" / f"{name}-step{module.trained_steps}"
        table = (map(cells.get, columns) for cells in ordered)
        self.path = write_csv_file(folder / "predictions.csv", columns, table)
        for scorer in module.evaluator.scorers:
            named = [cells.get(f"{scorer.name}/prediction") for cells in ordered]
            if any(name is not None for name in named):
                console.print(f"{scorer.name}: {count_classes(named)}", markup=False)
        console.print(f"{len(ordered)} answers are in {self.path}", markup=False, soft_wrap=True)


def _list_free_rows(prompts: dict[str, str], found: EvaluatedBatch) -> Iterator[PredictionRow]:
    """Yield a row per free-form sample."""
    for answer in found.answers:
        verdict = PredictedAnswer("exact_match", answer.answer, "", answer.correct)
        prompt = prompts[answer.sample_id]
        yield PredictionRow(answer.sample_id, prompt, answer.reference, (verdict,), answer.kind)
    for sample_id, text in found.texts.items():
        verdict = PredictedAnswer("", text, "", correct=None)
        yield PredictionRow(sample_id, prompts[sample_id], "", (verdict,), "")


def count_classes(named: list[str | None]) -> str:
    """Return how often the most frequent classes were predicted: `7 dog, 5 cat`."""
    counts = Counter(name for name in named if name).most_common()
    text = ", ".join(f"{count} {name}" for name, count in counts[:_SHOWN])
    if len(counts) > _SHOWN:
        text += f" and {len(counts) - _SHOWN} other classes"
    unnamed = len(named) - sum(count for _, count in counts)
    without = f"no class named in {unnamed} of {len(named)}" if unnamed else ""
    return "; ".join(filter(None, (text, without)))
