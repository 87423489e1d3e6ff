"""Writes down how good the model is, with N and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightning as L
from rich.console import Console
from rich.table import Table

from lightning_mllm.callbacks import access
from lightning_mllm.evaluation import ClassificationResult
from lightning_mllm.tracking.figures import confusion_matrix
from lightning_mllm.tracking.files import write_json, write_rows
from lightning_mllm.tracking.log import log_image, log_table


class EvaluationReport(L.Callback):
    """Writes the scores of each evaluation into its folder, `evaluation/<stage>-step<k>/`.

    They are `scores.json` and, per scorer, `<scorer>-per-class.csv` and `<scorer>-confusion.csv`. A test also draws the
    confusion matrix, `<scorer>-confusion.png`, and shows its scores in the terminal.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the report."""
        module = access.mllm(pl_module)
        if trainer.sanity_checking or not trainer.is_global_zero or not module.results:
            return
        folder = access.evaluation_dir(trainer, module)
        scores = {scorer: result.summary() for scorer, result in module.results.items()}
        report = {"stage": module.stage_name, "step": module.trained_steps, "scorers": scores}
        write_json(folder / "scores.json", report)
        for scorer, result in module.results.items():
            _write_confusion(folder / f"{scorer}-confusion.csv", result)
            columns, rows = per_class(result)
            write_rows(folder / f"{scorer}-per-class.csv", columns, rows)
            key = f"evaluation/{module.stage_name}/{scorer}"
            log_table(trainer.loggers, f"{key}/per_class", columns, rows, trainer.global_step)
            if trainer.testing:
                path = folder / f"{scorer}-confusion.png"
                picture = confusion_matrix(result, path, title=f"{folder.name}, {scorer}")
                log_image(trainer.loggers, f"{key}/confusion", picture, trainer.global_step)
        if trainer.testing:
            Console().print(scores_table(folder.name, module.results))

    on_test_end = on_validation_end


def per_class(result: ClassificationResult) -> tuple[list[str], list[list[str | int | float]]]:
    """Return the header and one row per class: how often it is true, predicted and both, and its F1."""
    counts = result.confusion
    rows: list[list[str | int | float]] = [
        [name, int(counts[i].sum()), int(counts[:, i].sum()), int(counts[i, i]), result.per_class_f1[i]]
        for i, name in enumerate(result.names)
    ]
    return ["class", "true", "predicted", "correct", "f1"], rows


def scores_table(title: str, results: Mapping[str, ClassificationResult]) -> Table:
    """Return the scores as a table for people."""
    table = Table("scorer", title=title, title_justify="left", caption="brackets: 95 % bootstrap intervals")
    for column in ("N", "accuracy", "macro-F1", "invalid"):
        table.add_column(column, justify="right")
    for scorer, result in results.items():
        accuracy = "{:.3f} [{:.3f}, {:.3f}]".format(result.accuracy, *result.accuracy_interval)
        macro_f1 = "{:.3f} [{:.3f}, {:.3f}]".format(result.macro_f1, *result.macro_f1_interval)
        table.add_row(scorer, str(result.n), accuracy, macro_f1, f"{result.invalid_rate:.1%}")
    return table


def _write_confusion(path: Path, result: ClassificationResult) -> None:
    rows = [[name, *counts] for name, counts in zip(result.names, result.confusion.tolist(), strict=True)]
    write_rows(path, ["true \\ predicted", *result.names, "(invalid)"], rows)
