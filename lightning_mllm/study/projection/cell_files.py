"""Reads what the runs of a finished cell wrote."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mllm.errors import DataError
from lightning_mllm.store.files import read_json
from lightning_mllm.study.engine.cell_folder import evaluation_of, way_out
from lightning_mllm.study.projection.cells import CellFolder
from lightning_mllm.study.projection.study import Richness

Row = Mapping[str, str]

_PROBED = "probe-predictions.csv"
_CLIP, _CLIP_SCORES = "clip-predictions.csv", "clip.json"
_PROBE_KEY = ("epoch", "stage", "point", "probe", "seed")
_DRIFT_KEY = ("epoch", "point")


@dataclass(frozen=True)
class Answers:
    """Who was taken for what on the test split.

    Attributes:
        targets: Sample id -> true class.
        predicted: Per repetition (one for the model, one per seed of a probe): sample id -> class, empty: invalid.
        halves: Likewise, of probes that were trained on halves of the training samples.
    """

    targets: Mapping[str, str]
    predicted: tuple[Mapping[str, str], ...]
    halves: tuple[Mapping[str, str], ...] = ()


def scores_of(folder: CellFolder) -> dict[str, dict[str, Any]]:
    """Return the summary of each scorer.

    Raises:
        DataError: The file is missing or can't be read, or has no scores of classes.
    """
    path = evaluation_of(folder) / "scores.json"
    scorers: dict[str, dict[str, Any]] | None = read_json(path).get("scorers")
    if not scorers:
        raise DataError(
            f"{path} has no scorers. The study is about classification: give its domains labels, and leave "
            "model.scorers in."
        )
    return scorers


def answers_of(folder: CellFolder, scorer: str) -> Answers:
    """Return what the model answered.

    Raises:
        DataError: The file is missing, or the scorer is not in it.
    """
    path = evaluation_of(folder) / "predictions.csv"
    rows = _read(path, folder)
    column = f"{scorer}/prediction"
    if rows and column not in rows[0]:
        there = [name.removesuffix("/prediction") for name in rows[0] if name.endswith("/prediction")]
        raise DataError(f"{path} has no scorer {scorer!r}, only {', '.join(there)}. Set the study's option scorer.")
    targets = {row["sample_id"]: row["target"] for row in rows}
    return Answers(targets, ({row["sample_id"]: row[column] for row in rows},))


def clip_answers_of(folder: CellFolder) -> Answers | None:
    """Return what CLIP itself answered on the same split, or None where `ClipZeroShot` was not among the callbacks."""
    path = evaluation_of(folder) / _CLIP
    if not path.is_file():
        return None
    rows = _read(path, folder)
    return Answers(
        {row["sample_id"]: row["target"] for row in rows}, ({row["sample_id"]: row["prediction"] for row in rows},)
    )


def clip_scores_of(folder: CellFolder) -> dict[str, Any] | None:
    """Return the summary of CLIP's scores, or None."""
    path = evaluation_of(folder) / _CLIP_SCORES
    return read_json(path) if path.is_file() else None


def has_probe(folder: CellFolder, point: str, probe: str) -> bool:
    """Return whether a kind of probe was trained at a point."""
    path = evaluation_of(folder) / _PROBED
    return path.is_file() and bool(_columns_of_probe(_read(path, folder), point, probe))


def probed_answers_of(folder: CellFolder, point: str, probe: str) -> Answers:
    """Return what the probes of one kind at one point answered, one repetition per seed of a probe.

    Raises:
        DataError: The file is missing, or the probe or its halves are not in it.
    """
    path = evaluation_of(folder) / _PROBED
    rows = _read(path, folder)
    columns = _columns_of_probe(rows, point, probe)
    if not columns:
        there = sorted({name.rpartition("/")[0] for name in (rows[0] if rows else ()) if "/seed" in name})
        raise DataError(
            f"{path} has no columns {point}/{probe}/seed*, only of {', '.join(there) or 'no probe'}. Set the study's "
            "option richness."
        )
    halves = _columns_of_probe(rows, point, probe, "half")
    if len(halves) < 2:
        raise DataError(
            f"{path} has {len(halves)} columns {point}/{probe}/half*: without them nothing is known of how much a "
            "richness owes to which training samples there are. Give ProbeEachEpoch halves: 20."
        )
    targets = {row["sample_id"]: row["target"] for row in rows}
    seeds, parts = (
        tuple({row["sample_id"]: row[column] for row in rows} for column in names) for names in (columns, halves)
    )
    return Answers(targets, seeds, parts)


def probes_of(folder: CellFolder) -> list[Row]:
    """Return the rows of `probes.csv`; where a resumed run has rows again, the later ones.

    Raises:
        DataError: The file is missing.
    """
    return _read_all_runs(folder, "probes.csv", _PROBE_KEY)


def drift_of(folder: CellFolder) -> list[Row]:
    """Return the rows of `drift.csv`; where a resumed run has rows again, the later ones.

    Raises:
        DataError: The file is missing.
    """
    return _read_all_runs(folder, "drift.csv", _DRIFT_KEY)


def check_complete(folder: CellFolder, *, scorer: str, richness: Richness | None, drift: bool) -> None:
    """Refuse a cell that lacks what the study reads.

    Raises:
        DataError: A file is missing, or the scorer or the probe is not in it.
    """
    if scorer not in (scorers := scores_of(folder)):
        raise DataError(f"{folder.cell.id} has no scorer {scorer!r}, only {', '.join(scorers)}. Set the option scorer.")
    answers_of(folder, scorer)
    if richness is not None:
        probes_of(folder)
        probed_answers_of(folder, richness.point, richness.probe)
    if drift and folder.cell.trains:
        drift_of(folder)


def _columns_of_probe(rows: Sequence[Row], point: str, probe: str, of: str = "seed") -> list[str]:
    return [name for name in (rows[0] if rows else ()) if name.startswith(f"{point}/{probe}/{of}")]


def _read_all_runs(folder: CellFolder, name: str, key: Iterable[str]) -> list[Row]:
    key = tuple(key)
    paths = [path for run in folder.runs() if (path := run / name).is_file()]
    if not paths:
        raise DataError(f"{folder.runs()[-1] / name} is missing.{way_out(folder)}")
    return list({tuple(row[part] for part in key): row for path in paths for row in _rows(path)}.values())


def _read(path: Path, folder: CellFolder) -> list[Row]:
    if not path.is_file():
        raise DataError(f"{path} is missing.{way_out(folder)}")
    return list(_rows(path))


def _rows(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
