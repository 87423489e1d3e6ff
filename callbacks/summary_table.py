"""The table at the end of a fit: a column per moment, a row per number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lightning_mllm.callbacks.score_tables import format_score
from lightning_mllm.evaluation import AnswerResult, ClassificationResult

_INVALID = "  invalid"
_LABEL_WIDTH = 14  # three columns of scores beside it make 80


@dataclass(frozen=True)
class EvaluationScores:
    """What one evaluation found.

    Attributes:
        split: `validation` or `test`.
        step: Steps that the weights have been trained for.
        n: Number of samples.
        loss: Mean loss per answer token; NaN if it is not known.
        results: Scorer -> scores; empty for free-form data.
        answers: Scores of open answers.
    """

    split: str
    step: int
    n: int
    loss: float
    results: Mapping[str, ClassificationResult]
    answers: AnswerResult | None


@dataclass(frozen=True)
class SummaryColumn:
    """A moment of a fit.

    Attributes:
        name: What it is called.
        scores: Split -> scores at that moment.
    """

    name: str
    scores: Mapping[str, EvaluationScores]


def draw_summary_table(columns: Sequence[SummaryColumn]) -> Table:
    """Return the table for the terminal; with three columns it is 80 wide.

    Args:
        columns: The moments, each with the scores of a split at least.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", max_width=_LABEL_WIDTH, overflow="fold")
    for column in columns:
        table.add_column(column.name, justify="right")
    for split in ("validation", "test"):
        moments = [column.scores.get(split) for column in columns]
        cells = [{} if each is None else _cells_of_scores(each) for each in moments]
        rows = dict.fromkeys(chain.from_iterable(cells))
        for key in rows:
            row = [each.get(key, "") for each in cells]
            if key[1] != _INVALID or set(row) - {"", "0.0%"}:
                table.add_row(Text(key[1]), *row)
        if split == "validation":
            table.add_section()
    return table


def _cells_of_scores(scores: EvaluationScores) -> dict[tuple[str, str], str]:
    """Return (scorer, label of the row) -> cell; an indented row belongs to the one above."""
    loss = "" if math.isnan(scores.loss) else f"{scores.loss:.3f}"
    cells = {("", scores.split): "", ("", " step"): str(scores.step)}
    cells |= {("", " N"): str(scores.n), ("", " loss"): loss}
    for scorer, result in scores.results.items():
        cells[scorer, f" {scorer}"] = ""
        cells[scorer, "  accuracy"] = format_score(result.accuracy, result.accuracy_interval)
        cells[scorer, "  macro-F1"] = format_score(result.macro_f1, result.macro_f1_interval)
        cells[scorer, _INVALID] = f"{result.invalid_rate:.1%}"
    if (answers := scores.answers) is not None:
        overall = answers.overall
        cells["", " exact match"] = format_score(overall.accuracy, overall.interval)
        cells["", " mean of kinds"] = f"{answers.mean_over_kinds:.3f}"
        for kind, score in answers.per_kind.items():
            cells[kind, f" {kind}"] = format_score(score.accuracy, score.interval)
    return cells
