"""Writes down how good the model is, with N and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_mllm.callbacks import trainer_state
from lightning_mllm.evaluation import AnswerResult, ClassificationResult, Interval
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import write_json, write_rows
from lightning_mllm.tracking.figures.run import confusion_matrix
from lightning_mllm.tracking.loggers import log_image, log_table


class EvaluationReport(L.Callback):
    """Writes the scores of each evaluation into its folder, `evaluation/<stage>-step<k>/`.

    They are `scores.json`, which also says in which dtype and batches they came about, and, per scorer,
    `<scorer>-per-class.csv` and `<scorer>-confusion.csv`; of open answers `exact-match-per-kind.csv`. A test also draws
    the confusion matrix, `<scorer>-confusion.png`, and shows its scores in the terminal.
    """

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the report."""
        module = trainer_state.mllm(pl_module)
        scored = module.results or module.exact_match
        if trainer.sanity_checking or not trainer.is_global_zero or not scored:
            return
        folder, key = trainer_state.evaluation_dir(trainer, module), f"evaluation/{module.stage_name}"
        scores: dict[str, Any] = {"stage": module.stage_name, "step": module.trained_steps}
        scores["dtype"] = str(module.adapted.dtype).removeprefix("torch.")  # in 16 bit the two decide in close cases
        scores["batch_size"] = trainer.datamodule.eval_batch_size  # type: ignore[attr-defined]
        if module.results:
            scores["scorers"] = {scorer: result.summary() for scorer, result in module.results.items()}
            for scorer, result in module.results.items():
                _report_scorer(trainer, module, key, scorer, result)
        if module.exact_match is not None:
            scores["exact_match"] = module.exact_match.summary()
            columns, rows = per_kind(module.exact_match)
            write_rows(folder / "exact-match-per-kind.csv", columns, rows)
            log_table(trainer.loggers, f"{key}/exact_match/per_kind", columns, rows, module.trained_steps)
        write_json(folder / "scores.json", scores)
        if trainer.testing and module.results:
            Console().print(scores_table(folder.name, module.results))
        if trainer.testing and module.exact_match is not None:
            Console().print(kinds_table(folder.name, module.exact_match))

    on_test_end = on_validation_end


def per_class(result: ClassificationResult) -> tuple[list[str], list[list[str | int | float]]]:
    """Return the header and one row per class: how often it is true, predicted and both, and its F1."""
    counts = result.confusion
    rows: list[list[str | int | float]] = [
        [name, int(counts[i].sum()), int(counts[:, i].sum()), int(counts[i, i]), result.per_class_f1[i]]
        for i, name in enumerate(result.names)
    ]
    return ["class", "true", "predicted", "correct", "f1"], rows


def per_kind(result: AnswerResult) -> tuple[list[str], list[list[str | int | float]]]:
    """Return the header and one row per kind of question: its number of answers, and the share that is right."""
    rows: list[list[str | int | float]] = [
        [kind, score.n, score.correct, score.accuracy, *score.interval] for kind, score in result.per_kind.items()
    ]
    return ["kind", "n", "correct", "accuracy", "low_95", "high_95"], rows


def scores_table(title: str, results: Mapping[str, ClassificationResult]) -> Table:
    """Return the scores as a table for people."""
    table = Table("scorer", title=title, title_justify="left", caption="brackets: 95 % intervals")
    for column in ("N", "accuracy", "macro-F1", "invalid"):
        table.add_column(column, justify="right")
    for scorer, result in results.items():
        accuracy = _with_interval(result.accuracy, result.accuracy_interval)
        macro_f1 = _with_interval(result.macro_f1, result.macro_f1_interval)
        table.add_row(scorer, str(result.n), accuracy, macro_f1, f"{result.invalid_rate:.1%}")
    return table


def kinds_table(title: str, result: AnswerResult) -> Table:
    """Return the accuracy of open answers, per kind of question and over all, as a table for people."""
    caption = "exact match; brackets: 95 % intervals over pictures"
    table = Table("kind", title=title, title_justify="left", caption=caption)
    for column in ("N", "accuracy"):
        table.add_column(column, justify="right")
    for kind, score in result.per_kind.items():
        table.add_row(Text(kind), str(score.n), _with_interval(score.accuracy, score.interval))
    table.add_section()
    overall = result.overall
    table.add_row("all answers", str(overall.n), _with_interval(overall.accuracy, overall.interval))
    table.add_row("mean over kinds", "", f"{result.mean_over_kinds:.3f}")
    return table


def _with_interval(value: float, interval: Interval) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(value, *interval)


def _report_scorer(trainer: L.Trainer, module: MLLMModule, key: str, scorer: str, result: ClassificationResult) -> None:
    folder = trainer_state.evaluation_dir(trainer, module)
    names = [[name, *counts] for name, counts in zip(result.names, result.confusion.tolist(), strict=True)]
    write_rows(folder / f"{scorer}-confusion.csv", ["true \\ predicted", *result.names, "(invalid)"], names)
    columns, rows = per_class(result)
    write_rows(folder / f"{scorer}-per-class.csv", columns, rows)
    log_table(trainer.loggers, f"{key}/{scorer}/per_class", columns, rows, module.trained_steps)
    if trainer.testing:
        path = folder / f"{scorer}-confusion.png"
        picture = confusion_matrix(result, path, title=f"{folder.name}, {scorer}")
        log_image(trainer.loggers, f"{key}/{scorer}/confusion", picture, module.trained_steps)
