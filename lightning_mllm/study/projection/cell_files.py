"""Reads what the runs of a finished cell of the projection study wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_mllm.errors import DataError
from lightning_mllm.store.files import read_json
from lightning_mllm.study.engine.outputs import (
    Row,
    evaluation_output,
    last_run_output,
    missing_output_way_out,
    read_output_table,
)
from lightning_mllm.study.projection.cells import ProjectionFolder
from lightning_mllm.study.projection.study import ProjectionStudy

_PROBED = "probe-predictions.csv"
_CLIP, _CLIP_SCORES = "clip-predictions.csv", "clip.json"
_PROBE_KEY = ("epoch", "stage", "point", "probe", "seed", "target")
_CELLS = "probes_and_answers.csv"
_CELL_KEY = ("epoch", "stage", "point", "probe", "scorer", "target")
_LABEL = "label"  # what the study's probes read; others may be beside them
_MISSING = {"target": _LABEL}  # what a column has in files from before it was there
_DRIFT_KEY = ("epoch", "point")


@dataclass(frozen=True)
class CellFileAnswers:
    """Which class was answered for each sample of the test split.

    Attributes:
        targets: Sample id -> true class.
        predicted: Per repetition (one for the model, one per seed of a probe): sample id -> class,
            empty for an invalid answer.
        halves: Answers, in the same form, of probes that were trained on halves of the training
            samples.
    """

    targets: Mapping[str, str]
    predicted: tuple[Mapping[str, str], ...]
    halves: tuple[Mapping[str, str], ...] = ()


def scores_in_cell_files(folder: ProjectionFolder) -> dict[str, dict[str, Any]]:
    """Return the summary of each scorer.

    Raises:
        DataError: The file is missing or can't be read, or has no scores of classes.
    """
    path = evaluation_output(folder) / "scores.json"
    scorers: dict[str, dict[str, Any]] | None = read_json(path).get("scorers")
    if not scorers:
        raise DataError(
            f"{path} has no scorers. The study is about classification: give its domains labels, "
            "and keep model.scorers."
        )
    return scorers


def answers_in_cell_files(folder: ProjectionFolder, scorer: str) -> CellFileAnswers:
    """Return what the model answered.

    Raises:
        DataError: The file is missing, or the scorer is not in it.
    """
    path = evaluation_output(folder) / "predictions.csv"
    rows = read_output_table(path, folder)
    column = f"{scorer}/prediction"
    names = _column_names(rows)
    if rows and column not in names:
        there = [name for name in names if name.endswith("/prediction")]
        scorers = [name.removesuffix("/prediction") for name in there]
        raise DataError(
            f"{path} has no scorer {scorer!r}, only {', '.join(scorers)}. Set the study's option "
            "scorer."
        )
    return CellFileAnswers(_column(rows, "target"), (_column(rows, column),))


def clip_answers_in_cell_files(folder: ProjectionFolder) -> CellFileAnswers | None:
    """Return what CLIP itself answered on the same split.

    It is None where the callback `ClipZeroShot` was not in the cell's configs.
    """
    path = evaluation_output(folder) / _CLIP
    if not path.is_file():
        return None
    rows = read_output_table(path, folder)
    return CellFileAnswers(_column(rows, "target"), (_column(rows, "prediction"),))


def clip_scores_in_cell_files(folder: ProjectionFolder) -> dict[str, Any] | None:
    """Return the summary of CLIP's scores, or None."""
    path = evaluation_output(folder) / _CLIP_SCORES
    return read_json(path) if path.is_file() else None


def probe_in_cell_files(folder: ProjectionFolder, point: str, probe: str) -> bool:
    """Return whether a kind of probe was trained at a point."""
    path = evaluation_output(folder) / _PROBED
    if not path.is_file():
        return False
    return bool(_columns_of_probe(read_output_table(path, folder), f"{point}/{probe}/seed"))


def probed_answers_in_cell_files(
    folder: ProjectionFolder, point: str, probe: str
) -> CellFileAnswers:
    """Return what the probes of one kind at one point answered, one repetition per seed of a probe.

    Raises:
        DataError: The file is missing, or the probe or its halves are not in it.
    """
    path = evaluation_output(folder) / _PROBED
    rows = read_output_table(path, folder)
    seeds = _columns_of_probe(rows, f"{point}/{probe}/seed")
    halves = _columns_of_probe(rows, f"{point}/{probe}/half")
    if not seeds:
        names = [name for name in _column_names(rows) if "/seed" in name]
        probes = ", ".join(sorted({name.rpartition("/")[0] for name in names}))
        raise DataError(
            f"{path} has no columns {point}/{probe}/seed*, only of {probes or 'no probe'}. Set the "
            "study's option richness."
        )
    if len(halves) < 2:
        raise DataError(
            f"{path} has {len(halves)} columns {point}/{probe}/half*. Without them it is not known "
            "how much a richness depends on the choice of training samples. Give ProbeEachEpoch "
            "halves: 20."
        )
    return CellFileAnswers(_column(rows, "target"), _columns(rows, seeds), _columns(rows, halves))


def probes_in_cell_files(folder: ProjectionFolder) -> list[Row]:
    """Return the rows of `probes.csv`; where a resumed run wrote a row again, the later one.

    Raises:
        DataError: The file is missing.
    """
    rows = _read_all_runs(folder, "probes.csv", _PROBE_KEY)
    return [row for row in rows if row.get("target", _LABEL) == _LABEL]


def probes_and_answers_in_cell_files(folder: ProjectionFolder) -> list[Row]:
    """Return the rows of `probes_and_answers.csv`; none where an older version ran the cell."""
    if not any((run / _CELLS).is_file() for run in folder.runs()):
        return []
    rows = _read_all_runs(folder, _CELLS, _CELL_KEY)
    return [row for row in rows if row["target"] == _LABEL]


def drift_in_cell_files(folder: ProjectionFolder) -> list[Row]:
    """Return the rows of `drift.csv`; where a resumed run wrote a row again, the later one.

    Raises:
        DataError: The file is missing.
    """
    return _read_all_runs(folder, "drift.csv", _DRIFT_KEY)


def check_cell_files(study: ProjectionStudy, folder: ProjectionFolder) -> None:
    """Refuse a cell that lacks what the study reads.

    Raises:
        DataError: A file is missing, or the scorer or the probe is not in it.
    """
    scorers = scores_in_cell_files(folder)
    if study.scorer not in scorers:
        raise DataError(
            f"{folder.cell.id} has no scorer {study.scorer!r}, only {', '.join(scorers)}. Set the "
            "option scorer."
        )
    answers_in_cell_files(folder, study.scorer)
    if study.richness is not None:
        probes_in_cell_files(folder)
        probed_answers_in_cell_files(folder, study.richness.point, study.richness.probe)
    if study.drift and folder.cell.trains:
        drift_in_cell_files(folder)


def _column_names(rows: Sequence[Row]) -> list[str]:
    return list(rows[0]) if rows else []


def _columns_of_probe(rows: Sequence[Row], prefix: str) -> list[str]:
    return [name for name in _column_names(rows) if name.startswith(prefix)]


def _column(rows: Sequence[Row], name: str) -> dict[str, str]:
    """Return sample id -> what a column says of it."""
    return {row["sample_id"]: row[name] for row in rows}


def _columns(rows: Sequence[Row], names: Sequence[str]) -> tuple[dict[str, str], ...]:
    return tuple(_column(rows, name) for name in names)


def _read_all_runs(folder: ProjectionFolder, name: str, key: Sequence[str]) -> list[Row]:
    """Read a table of every run of a cell; rows with the same key are one, the last."""
    found: dict[tuple[str, ...], Row] = {}
    paths = [run / name for run in folder.runs()]
    if not any(path.is_file() for path in paths):
        raise DataError(
            f"{last_run_output(folder) / name} is missing.{missing_output_way_out(folder)}"
        )
    for path in paths:
        for row in read_output_table(path, folder) if path.is_file() else ():
            found[tuple(row.get(column, _MISSING.get(column, "")) for column in key)] = row
    return list(found.values())
