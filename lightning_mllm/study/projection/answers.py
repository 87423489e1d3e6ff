"""All answers of all finished cells in one file, from which tables and verdicts can be computed."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable
from pathlib import Path

from lightning_mllm.store.files import write_bytes
from lightning_mllm.study.projection.cell_files import CellFileAnswers
from lightning_mllm.study.projection.cells import ProjectionFolder
from lightning_mllm.study.projection.comparison import Kind, answers_to_compare
from lightning_mllm.study.projection.study import ProjectionStudy

_COLUMNS = ("cell", "kind", "sample_id", "target")


def write_answers(study: ProjectionStudy, done: Iterable[ProjectionFolder], path: Path) -> Path:
    """Write a gzipped CSV file: a row per cell, kind of model, and test sample.

    After cell, kind, sample and its class, a row has an answer per repetition (one of the model,
    one per seed of a probe) and one per half of a probe's training samples. Invalid answers are
    empty.

    Raises:
        DataError: A file of a finished cell is missing.
    """
    found: list[tuple[str, Kind, CellFileAnswers]] = []
    repetitions = halves = 0
    for folder in done:
        by_kind: dict[Kind, CellFileAnswers] = {}  # they are the same under all presets of the cell
        for answerer, answers in answers_to_compare(study, folder).items():
            by_kind[answerer.kind] = answers
        for kind, answers in by_kind.items():
            found.append((folder.cell.id, kind, answers))
            repetitions = max(repetitions, len(answers.predicted))
            halves = max(halves, len(answers.halves))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"answer{number}" for number in range(repetitions)]
    columns += [f"half{number}" for number in range(halves)]
    writer.writerow([*_COLUMNS, *columns])
    for cell, kind, answers in found:
        gap = [""] * (repetitions - len(answers.predicted))
        for sample, target in answers.targets.items():
            said = [each[sample] for each in answers.predicted]
            of_halves = [each[sample] for each in answers.halves]
            writer.writerow([cell, kind, sample, target, *said, *gap, *of_halves])
    return write_bytes(path, gzip.compress(text.getvalue().encode(), mtime=0))
