"""All answers of all finished cells in one file: what tables and verdicts are made of."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_mllm.store.files import write_bytes
from lightning_mllm.study.projection.cell_files import Answers
from lightning_mllm.study.projection.cells import CellFolder
from lightning_mllm.study.projection.comparison import Kind, answers_of_cell
from lightning_mllm.study.projection.study import Study

_COLUMNS = ("cell", "kind", "sample_id", "target")


def write_answers(study: Study, done: Iterable[CellFolder], path: Path) -> Path:
    """Write a gzipped CSV file: a row per cell, kind of who answered, and test sample.

    Behind cell, kind, sample and its class there is an answer per repetition (one of the model, one per seed of a
    probe) and one per half of a probe's training samples; an invalid answer is empty.

    Raises:
        DataError: A file of a finished cell is missing.
    """
    found = [(folder.cell.id, kind, answers) for folder in done for kind, answers in _kinds(study, folder)]
    repetitions, halves = (
        max((len(getattr(answers, name)) for *_, answers in found), default=0) for name in ("predicted", "halves")
    )
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = [*(f"answer{number}" for number in range(repetitions)), *(f"half{number}" for number in range(halves))]
    writer.writerow([*_COLUMNS, *columns])
    for cell, kind, answers in found:
        gap = [""] * (repetitions - len(answers.predicted))
        for sample, target in answers.targets.items():
            said, of_halves = ([each[sample] for each in part] for part in (answers.predicted, answers.halves))
            writer.writerow([cell, kind, sample, target, *said, *gap, *of_halves])
    return write_bytes(path, gzip.compress(text.getvalue().encode(), mtime=0))


def _kinds(study: Study, folder: CellFolder) -> Iterator[tuple[Kind, Answers]]:
    """Give who answered in a cell, each once, whatever its presets."""
    yield from {who.kind: answers for who, answers in answers_of_cell(study, folder).items()}.items()
