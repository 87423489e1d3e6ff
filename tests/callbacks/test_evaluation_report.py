from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from lightning_mllm.callbacks.score_tables import (
    score_rows_per_class,
    score_rows_per_kind,
    score_table,
    score_table_of_kinds,
)
from lightning_mllm.evaluation import AnswerResult, AnswerScore, ClassificationResult
from lightning_mllm.progress import console
from tests.callbacks.conftest import EVALUATED, Study

SCORERS = ("generation", "likelihood")


@pytest.mark.parametrize("stage", ["val-step0", "zero_shot-step0", "val-step4", "test-step4"])
def test_each_evaluation_has_scores_with_n_and_intervals(study: Study, stage: str) -> None:
    report = json.loads((study.folder / "evaluation" / stage / "scores.json").read_text())

    assert f"{report['stage']}-step{report['step']}" == stage
    assert (report["dtype"], report["batch_size"]) == ("float32", 4)
    assert set(report["scorers"]) == set(SCORERS)
    for scores in report["scorers"].values():
        assert scores["n"] == EVALUATED
        assert (
            scores["accuracy_interval_95"][0]
            <= scores["accuracy"]
            <= scores["accuracy_interval_95"][1]
        )
        assert 0 <= scores["invalid_rate"] <= 1


@pytest.mark.parametrize("scorer", SCORERS)
def test_tables_and_picture_lie_beside_the_scores(study: Study, scorer: str) -> None:
    folder = study.folder / "evaluation" / "test-step4"
    confusion = list(csv.reader((folder / f"{scorer}-confusion.csv").read_text().splitlines()))
    classes = list(csv.DictReader((folder / f"{scorer}-per-class.csv").read_text().splitlines()))

    assert (len(confusion), len(confusion[0])) == (11, 12)
    assert sum(int(cell) for row in confusion[1:] for cell in row[1:]) == EVALUATED
    assert sum(int(row["true"]) for row in classes) == EVALUATED
    assert (folder / f"{scorer}-confusion.png").is_file()


def test_per_class_counts_and_f1() -> None:
    result = ClassificationResult.from_confusion(
        ("a", "b", "c"), np.array([[3, 1, 0, 1], [0, 2, 0, 0], [0, 0, 0, 0]])
    )
    _, rows = score_rows_per_class(result)

    assert rows[0] == ["a", 5, 3, 3, pytest.approx(6 / 8)]
    assert rows[1] == ["b", 2, 3, 2, pytest.approx(4 / 5)]
    assert rows[2][:4] == ["c", 0, 0, 0]


def test_the_terminal_table_shows_n_scores_and_intervals() -> None:
    result = ClassificationResult.from_confusion(("a", "b"), np.array([[5, 0, 0], [0, 4, 1]]))
    table = score_table("test", {"likelihood": result})
    cells = [next(iter(column.cells)) for column in table.columns]

    assert cells[:2] == ["likelihood", "10"]
    assert str(cells[2]).startswith("0.900 [")
    assert cells[4] == "10.0%"


def test_a_score_without_an_interval_says_so_and_why() -> None:
    result = ClassificationResult.from_confusion(("a", "b"), np.array([[5, 0, 0], [5, 0, 0]]))
    table = score_table("test", {"generation": result})

    assert list(table.columns[3].cells) == ["0.333 [-]"]
    assert "[-]: none, for answers that are the same" in str(table.caption)
    with console.capture() as shown:
        console.print(table)
    assert "0.333 [-]" in shown.get()  # it is no markup


ANSWERS = AnswerResult({"colour[red]": AnswerScore(10, 8), "shape": AnswerScore(30, 15)})


def test_per_kind_counts_accuracy_and_interval() -> None:
    columns, rows = score_rows_per_kind(ANSWERS)

    assert columns == ["kind", "n", "correct", "accuracy", "low_95", "high_95"]
    assert rows[0] == [
        "colour[red]",
        10,
        8,
        0.8,
        pytest.approx(0.49016, abs=1e-5),
        pytest.approx(0.94332, abs=1e-5),
    ]
    assert rows[1][:4] == ["shape", 30, 15, 0.5]


def test_the_terminal_table_shows_each_kind_and_all() -> None:
    cells = [
        [str(cell) for cell in column.cells]
        for column in score_table_of_kinds("test", ANSWERS).columns
    ]

    assert cells[0] == ["colour[red]", "shape", "all answers", "mean over kinds"]
    assert cells[1] == ["10", "30", "40", ""]
    assert cells[2][0] == "0.800 [0.490, 0.943]"
    assert cells[2][2].startswith("0.575 [")
    assert cells[2][3] == "0.650"
