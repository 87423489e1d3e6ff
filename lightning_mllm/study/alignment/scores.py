"""Reads what the runs of an alignment study's cells wrote: a row per checkpoint and number."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from lightning_mllm.errors import DataError
from lightning_mllm.store.files import read_json
from lightning_mllm.study.alignment.study import ALIGNMENT, CAPTIONS, PRESENCE, AlignmentStudy, MeasureFolder
from lightning_mllm.study.engine.cell_folder import evaluation_of, way_out

Curve = dict[int, float]  # layer -> value

_SETTINGS = "analysis/*/*/settings.json"
_POPE = ("accuracy", "precision", "recall", "f1", "yes_rate")
_CHAIR = ("chair_i", "chair_s", "recall")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number of a checkpoint.

    Attributes:
        checkpoint: Its name.
        measure: `task/<name>/accuracy`; `presence/<score>`, and per way of drawing `presence/<sampling>/<score>`;
            `captions/<score>`; `alignment/<reading>`.
        value: The number; None where it is not defined.
        low_95: Of its interval, over samples.
        high_95: Likewise.
        n: Number of samples behind it.
    """

    checkpoint: str
    measure: str
    value: float | None
    low_95: float | None
    high_95: float | None
    n: int

    def cells(self) -> tuple[object, ...]:
        """Return the row of the CSV file."""
        return astuple(self)


COLUMNS = tuple(field.name for field in fields(Score))


def scores_of_cell(study: AlignmentStudy, folder: MeasureFolder) -> list[Score]:
    """Return the numbers of a finished cell.

    Raises:
        DataError: A file is missing, or what the study reads is not in it.
    """
    readers: dict[str, Callable[[AlignmentStudy, MeasureFolder], Iterator[dict[str, Any]]]] = {
        ALIGNMENT: _alignment,
        PRESENCE: _presence,
        CAPTIONS: _captions,
    }
    found = readers.get(folder.cell.measure, _task)(study, folder)
    return [Score(checkpoint=folder.cell.checkpoint, **number) for number in found]


def curves_of_cell(study: AlignmentStudy, folder: MeasureFolder) -> dict[str, Curve]:
    """Return the alignment layer by layer, per reading, of a finished cell of that measure.

    Raises:
        DataError: A file is missing.
    """
    path = _only(folder, _SETTINGS, "the analysis Alignment", _has_scores).with_name("summary.csv")
    if not path.is_file():
        raise DataError(f"{path} is missing.{way_out(folder)}")
    curves: dict[str, Curve] = {reading: {} for reading in study.readings}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["state"], row["tokens"]) == ("residual", study.tokens) and row["value"]:
                curves.get(row["measure"], {})[int(row["layer"])] = float(row["value"])
    return curves


def _task(study: AlignmentStudy, folder: MeasureFolder) -> Iterator[dict[str, Any]]:
    """Yield the accuracy, of exact match or of the scorer."""
    path = evaluation_of(folder) / "scores.json"
    content = read_json(path)
    scorers = content.get("scorers", {})
    if (scores := content.get("exact_match") or scorers.get(study.scorer)) is None:
        raise DataError(
            f"{path} has neither exact match nor the scorer {study.scorer!r}, only {', '.join(scorers) or 'none'}. "
            "Give the task's samples a kind or a label, or set the study's option scorer."
        )
    yield from _numbers(folder.cell.measure.replace(".", "/"), scores, ("accuracy",))


def _presence(_: AlignmentStudy, folder: MeasureFolder) -> Iterator[dict[str, Any]]:
    scores = read_json(_only(folder, "evaluation/*/pope.json", "the callback PopeReport"))
    yield from _numbers(PRESENCE, scores, _POPE)
    for sampling, own in scores["samplings"].items():
        yield from _numbers(f"{PRESENCE}/{sampling}", own, _POPE)


def _captions(_: AlignmentStudy, folder: MeasureFolder) -> Iterator[dict[str, Any]]:
    scores = read_json(_only(folder, "evaluation/*/chair.json", "the callback ChairReport"))
    yield from _numbers(CAPTIONS, scores, _CHAIR)


def _alignment(study: AlignmentStudy, folder: MeasureFolder) -> Iterator[dict[str, Any]]:
    path = _only(folder, _SETTINGS, "the analysis Alignment", _has_scores)
    scores: Mapping[str, Any] = read_json(path)["found"]["scores"].get(study.tokens, {})
    for reading in study.readings:
        if reading not in scores:
            raise DataError(
                f"{path} has no score {reading!r} of the tokens {study.tokens!r}, only {', '.join(scores) or 'none'}. "
                "Set the study's options readings and tokens, or the options of the analysis."
            )
        numbers = {name: scores[reading][name] for name in ("value", "low_95", "high_95", "n")}
        yield {"measure": f"{ALIGNMENT}/{reading}", **numbers}


def _only(folder: MeasureFolder, pattern: str, writer: str, fits: Callable[[Path], bool] = Path.is_file) -> Path:
    """Return the one file of the cell's last run that fits.

    Raises:
        DataError: There is none, or several do.
    """
    runs = folder.runs()
    found = [path for path in runs[-1].glob(pattern) if fits(path)] if runs else []
    if len(found) != 1:
        where = runs[-1] if runs else folder.path
        raise DataError(f"{where}/{pattern} is there {len(found)} times: {writer} writes it, once.{way_out(folder)}")
    return found[0]


def _has_scores(settings: Path) -> bool:
    return "scores" in read_json(settings).get("found", {})


def _numbers(prefix: str, scores: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for name in names:
        low, high = scores[f"{name}_interval_95"]
        yield {"measure": f"{prefix}/{name}", "value": scores[name], "low_95": low, "high_95": high, "n": scores["n"]}
