"""What the runs answered, on the samples that all of them have: read from `predictions.csv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.comparison.run_files import PREDICTIONS, ComparedRun
from lightning_mllm.errors import DataError

_RIGHT = {"True": True, "False": False}
_OPEN = "exact_match"  # the scorer of open answers

Row = Mapping[str, str]  # of a table of answers


@dataclass(frozen=True)
class RunAnswers:
    """The answers of an evaluation.

    Attributes:
        run: Whose they are.
        truth: Sample id -> the right answer: a class, or a reference.
        pictures: Sample id -> what the sample is about; empty where the table does not say it.
        right: Scorer -> sample id -> whether the answer is right.
        predicted: Scorer -> sample id -> predicted class, empty where none was; only of classes.
    """

    run: ComparedRun
    truth: Mapping[str, str]
    pictures: Mapping[str, str]
    right: Mapping[str, Mapping[str, bool]]
    predicted: Mapping[str, Mapping[str, str]]


def read_run_answers(run: ComparedRun) -> RunAnswers:
    """Read the answers of the evaluation that is compared.

    Raises:
        DataError: The file is damaged, or has no answers.
    """
    assert run.evaluation is not None  # `open_compared_runs` has chosen it
    path = run.evaluation / PREDICTIONS
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    truth = next((name for name in ("target", "reference") if name in columns), None)
    marks = {name: name.removesuffix("/correct") for name in columns if name.endswith("/correct")}
    if "correct" in columns:
        marks["correct"] = _OPEN
    if "sample_id" not in columns or truth is None or not marks:
        raise DataError(
            f"{path} is not a table of answers: expected rows with the columns sample_id, target "
            "or reference, and correct or <scorer>/correct. Evaluate the run again."
        )
    right, predicted = {}, {}
    for column, scorer in marks.items():
        right[scorer] = {row["sample_id"]: _read_mark(row, column, path) for row in rows}
        if (said := f"{scorer}/prediction") in columns:
            predicted[scorer] = {row["sample_id"]: row[said] for row in rows}
    return RunAnswers(
        run,
        truth={row["sample_id"]: row[truth] for row in rows},
        pictures={row["sample_id"]: row["picture"] for row in rows if row.get("picture")},
        right=right,
        predicted=predicted,
    )


def _read_mark(row: Row, column: str, path: Path) -> bool:
    if row[column] not in _RIGHT:
        raise DataError(
            f"{path} says {row[column]!r} in the column {column} of the sample "
            f"{row['sample_id']!r}; expected True or False. Evaluate the run again."
        )
    return _RIGHT[row[column]]


def match_answers(answers: Sequence[RunAnswers]) -> list[str]:
    """Return the ids of the samples that all runs have, in the order of the first run.

    Raises:
        DataError: There is no such sample, or the right answer of one is not the same everywhere.
    """
    first, *others = answers
    shared = set(first.truth).intersection(*(other.truth for other in others))
    common = [each for each in first.truth if each in shared]
    for other in others:
        if not first.truth.keys() & other.truth.keys():
            raise DataError(
                f"{first.run.name} and {other.run.name} were evaluated on different samples: of "
                f"{len(first.truth)} and {len(other.truth)} ids none is the same. Compare runs "
                "with the same data, split and seed of the splits (data.init_args.seed)."
            )
        wrong = [each for each in common if first.truth[each] != other.truth[each]]
        if wrong:
            raise DataError(
                f"{first.run.name} and {other.run.name} were evaluated on different data: the "
                f"right answers of {len(wrong)} of {len(common)} samples differ, e.g. of "
                f"{wrong[0]!r} {first.truth[wrong[0]]!r} and {other.truth[wrong[0]]!r}. Compare "
                "runs that were evaluated on the same files."
            )
    if not common:
        raise DataError(
            "There is no sample that all runs were evaluated on, only some. Compare two runs at a "
            "time, or evaluate all on the same data."
        )
    return common


def find_pictures(answers: Sequence[RunAnswers], samples: Sequence[str]) -> list[str]:
    """Return what each sample is about, as the first table that has it says; else the sample."""
    known: dict[str, str] = {}
    for each in reversed(answers):
        known |= each.pictures
    return [known.get(sample, sample) for sample in samples]


def common_scorers(answers: Sequence[RunAnswers]) -> list[str]:
    """Return the scorers that all runs have.

    Raises:
        DataError: There is none.
    """
    first, *others = answers
    shared = set(first.right).intersection(*(other.right for other in others))
    found = [name for name in first.right if name in shared]
    if not found:
        there = "; ".join(f"{each.run.name}: {', '.join(each.right)}" for each in answers)
        raise DataError(
            f"The runs have no scorer in common ({there}). Evaluate them with the same "
            "model.scorers."
        )
    return found


def other_scorers(answers: Sequence[RunAnswers], common: Sequence[str]) -> list[str]:
    """Return the scorers that some runs have, but not all."""
    found: dict[str, None] = {}  # in order
    for each in answers:
        found |= dict.fromkeys(each.right)
    return [name for name in found if name not in common]
