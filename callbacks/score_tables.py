"""How callbacks write the scores of an evaluation: files, rows, tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import lightning as L
from rich.table import Table
from rich.text import Text

from lightning_mllm.callbacks.trainer_state import trainer_evaluation_dir
from lightning_mllm.evaluation import AnswerResult, ClassificationResult, Interval
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.store.files import write_json
from lightning_mllm.tracking.loggers import log_metrics

Cell = str | int | float

_NO_ENDS = "[-]"


def write_score_summary(
    trainer: L.Trainer,
    module: MLLMModule,
    name: str,
    summary: Mapping[str, Any],
    logged: Mapping[str, float],
) -> None:
    """Write `<name>.json` into the folder of the evaluation, and log `<stage>/<name>/<score>`."""
    write_json(trainer_evaluation_dir(trainer, module) / f"{name}.json", summary)
    metrics = {f"{module.stage_name}/{name}/{score}": value for score, value in logged.items()}
    log_metrics(trainer.loggers, metrics, module.trained_steps)


def score_rows_per_class(result: ClassificationResult) -> tuple[list[str], list[list[Cell]]]:
    """Return the header, and per class how often it is true, predicted and both, and its F1."""
    counts = result.confusion
    rows: list[list[Cell]] = []
    for index, name in enumerate(result.names):
        true, predicted = int(counts[index].sum()), int(counts[:, index].sum())
        correct = int(counts[index, index])
        rows.append([name, true, predicted, correct, result.per_class_f1[index]])
    return ["class", "true", "predicted", "correct", "f1"], rows


def score_rows_per_kind(result: AnswerResult) -> tuple[list[str], list[list[Cell]]]:
    """Return the header, and per kind of question its number of answers and its accuracy."""
    rows: list[list[Cell]] = []
    for kind, score in result.per_kind.items():
        rows.append([kind, score.n, score.correct, score.accuracy, *score.interval])
    return ["kind", "n", "correct", "accuracy", "low_95", "high_95"], rows


def score_table(title: str, results: Mapping[str, ClassificationResult]) -> Table:
    """Return a table of the scores, for the terminal."""
    table = Table("scorer", title=title, title_justify="left")
    for column in ("N", "accuracy", "macro-F1", "invalid"):
        table.add_column(column, justify="right")
    for scorer, result in results.items():
        accuracy = format_score(result.accuracy, result.accuracy_interval)
        macro_f1 = format_score(result.macro_f1, result.macro_f1_interval)
        table.add_row(scorer, str(result.n), accuracy, macro_f1, f"{result.invalid_rate:.1%}")
    table.caption = explain_brackets(table)
    return table


def score_table_of_kinds(title: str, result: AnswerResult) -> Table:
    """Return a table of the accuracy of open answers per kind and over all, for the terminal."""
    caption = "exact match; brackets: 95 % intervals over pictures"
    table = Table("kind", title=title, title_justify="left", caption=caption)
    for column in ("N", "accuracy"):
        table.add_column(column, justify="right")
    for kind, score in result.per_kind.items():
        table.add_row(Text(kind), str(score.n), format_score(score.accuracy, score.interval))
    table.add_section()
    overall = result.overall
    accuracy = format_score(overall.accuracy, overall.interval)
    table.add_row("all answers", str(overall.n), accuracy)
    table.add_row("mean over kinds", "", f"{result.mean_over_kinds:.3f}")
    return table


def format_score(value: float, interval: Interval) -> str:
    """Return a score and its interval, e.g. `0.947 [0.919, 0.966]`; `[-]` where there is none."""
    if math.isnan(interval.low):
        return f"{value:.3f} {_NO_ENDS}"
    return "{:.3f} [{:.3f}, {:.3f}]".format(value, *interval)


def explain_brackets(table: Table, more: str = "") -> str:
    """Return what the brackets of a table of scores are, with more on the same line."""
    cells = map(str, chain.from_iterable(column.cells for column in table.columns))
    lacking = any(cell.endswith(_NO_ENDS) for cell in cells)
    note = f"\n{_NO_ENDS}: none, for answers that are the same within each class"
    return f"brackets: 95 % intervals{more}{note if lacking else ''}"
