"""All numbers of all finished cells of the alignment study: a row per checkpoint and number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from math import nan
from pathlib import Path
from typing import Any

from lightning_mllm.errors import DataError
from lightning_mllm.store.files import read_json
from lightning_mllm.study.alignment.cells import MeasureFolder
from lightning_mllm.study.alignment.study import ALIGNMENT, CAPTIONS, PRESENCE, AlignmentStudy
from lightning_mllm.study.engine.outputs import (
    evaluation_output,
    last_run_output,
    missing_output_way_out,
    read_output_table,
)
from lightning_mllm.tracking.figures.study import StudyPoint

_POPE = ("accuracy", "precision", "recall", "f1", "yes_rate")
_CHAIR = ("chair_i", "chair_s", "recall")


@dataclass(frozen=True, kw_only=True)
class CheckpointScore:
    """A number of a checkpoint.

    Attributes:
        checkpoint: Name of the checkpoint.
        measure: `task/<name>/accuracy`; `presence/<score>`, and per way of drawing absent objects
            `presence/<sampling>/<score>`; `captions/<score>`; or `alignment/<reading>`.
        value: The number; None where it is not defined.
        low_95: Lower end of its 95 % interval, over samples.
        high_95: Upper end of its 95 % interval, over samples.
        n: Number of samples that it is computed from.
    """

    checkpoint: str
    measure: str
    value: float | None
    low_95: float | None
    high_95: float | None
    n: int

    def row(self) -> tuple[object, ...]:
        """Return the row of the CSV file."""
        return astuple(self)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, if there is one."""
        if self.low_95 is None or self.high_95 is None:
            return None
        return self.low_95, self.high_95


COLUMNS = tuple(field.name for field in fields(CheckpointScore))


def collect_alignment_scores(
    study: AlignmentStudy, done: Iterable[MeasureFolder]
) -> list[CheckpointScore]:
    """Return the numbers of finished cells, in their order.

    Raises:
        DataError: A file is missing, or what the study reads is not in it.
    """
    found: list[CheckpointScore] = []
    for folder in done:
        found += scores_of_alignment_cell(study, folder)
    return found


def check_scores_of_alignment_cell(study: AlignmentStudy, folder: MeasureFolder) -> None:
    """Refuse a cell that lacks what the study reads.

    Raises:
        DataError: A file is missing, or something is not in it.
    """
    list(scores_of_alignment_cell(study, folder))
    if folder.cell.measure == ALIGNMENT:
        alignment_score_curves(study, folder)


def scores_of_alignment_cell(
    study: AlignmentStudy, folder: MeasureFolder
) -> Iterator[CheckpointScore]:
    """Yield the numbers of a finished cell.

    Raises:
        DataError: A file is missing, or what the study reads is not in it.
    """
    measure = folder.cell.measure
    if measure == ALIGNMENT:
        yield from _alignment_scores(study, folder)
    elif measure == PRESENCE:
        scores = read_json(_find_report(folder, "pope.json", "the callback PopeReport"))
        yield from _named_scores(folder, PRESENCE, scores, _POPE)
        for sampling, own in scores["samplings"].items():
            yield from _named_scores(folder, f"{PRESENCE}/{sampling}", own, _POPE)
    elif measure == CAPTIONS:
        scores = read_json(_find_report(folder, "chair.json", "the callback ChairReport"))
        yield from _named_scores(folder, CAPTIONS, scores, _CHAIR)
    else:
        accuracies = _task_scores(study, folder)
        yield from _named_scores(folder, measure.replace(".", "/"), accuracies, ("accuracy",))


def alignment_score_curves(
    study: AlignmentStudy, folder: MeasureFolder
) -> dict[str, dict[int, StudyPoint]]:
    """Return the alignment layer by layer, per reading, of a finished cell of that measure.

    Raises:
        DataError: A file is missing.
    """
    path = _find_settings(folder).with_name("summary.csv")
    curves: dict[str, dict[int, StudyPoint]] = {reading: {} for reading in study.readings}
    for row in read_output_table(path, folder):
        shown = row["state"] == "residual" and row["tokens"] == study.tokens
        if shown and row["value"] and row["measure"] in curves:
            ends = [float(row.get(end) or nan) for end in ("low_95", "high_95")]
            curves[row["measure"]][int(row["layer"])] = StudyPoint(float(row["value"]), *ends)
    return curves


def _task_scores(study: AlignmentStudy, folder: MeasureFolder) -> Mapping[str, Any]:
    """Return the scores of exact match, or else of the study's scorer."""
    path = evaluation_output(folder) / "scores.json"
    content = read_json(path)
    scorers = content.get("scorers", {})
    scores: Mapping[str, Any] | None = content.get("exact_match") or scorers.get(study.scorer)
    if scores is None:
        raise DataError(
            f"{path} has neither exact match nor the scorer {study.scorer!r}, only "
            f"{', '.join(scorers) or 'none'}. Give the task's samples a kind or a label, or set "
            "the study's option scorer."
        )
    return scores


def _named_scores(
    folder: MeasureFolder, prefix: str, scores: Mapping[str, Any], names: Iterable[str]
) -> Iterator[CheckpointScore]:
    """Yield some of the scores that a report has."""
    for name in names:
        low, high = scores[f"{name}_interval_95"]
        yield CheckpointScore(
            checkpoint=folder.cell.checkpoint,
            measure=f"{prefix}/{name}",
            value=scores[name],
            low_95=low,
            high_95=high,
            n=scores["n"],
        )


def _alignment_scores(study: AlignmentStudy, folder: MeasureFolder) -> Iterator[CheckpointScore]:
    """Yield the alignment scores that the study reads."""
    path = _find_settings(folder)
    scores: Mapping[str, Any] = read_json(path)["found"]["scores"].get(study.tokens, {})
    for reading in study.readings:
        if reading not in scores:
            raise DataError(
                f"{path} has no score {reading!r} of the tokens {study.tokens!r}, only "
                f"{', '.join(scores) or 'none'}. Set the study's options readings and tokens, or "
                "the options of the analysis."
            )
        score = scores[reading]
        yield CheckpointScore(
            checkpoint=folder.cell.checkpoint,
            measure=f"{ALIGNMENT}/{reading}",
            value=score["value"],
            low_95=score["low_95"],
            high_95=score["high_95"],
            n=score["n"],
        )


def _find_report(folder: MeasureFolder, name: str, writer: str) -> Path:
    """Return the file that a callback wrote in the cell's last run."""
    pattern = f"evaluation/*/{name}"
    return _only_one(folder, pattern, writer, list(last_run_output(folder).glob(pattern)))


def _find_settings(folder: MeasureFolder) -> Path:
    """Return the settings file of the analysis in the cell's last run that has alignment scores."""
    pattern = "analysis/*/*/settings.json"
    found = []
    for path in last_run_output(folder).glob(pattern):
        if "scores" in read_json(path).get("found", {}):
            found.append(path)
    return _only_one(folder, pattern, "the analysis Alignment", found)


def _only_one(folder: MeasureFolder, pattern: str, writer: str, found: list[Path]) -> Path:
    """Return the one file that was found.

    Raises:
        DataError: There is none, or there are several.
    """
    if len(found) != 1:
        raise DataError(
            f"{last_run_output(folder)}/{pattern} is there {len(found)} times: {writer} writes it, "
            f"once.{missing_output_way_out(folder)}"
        )
    return found[0]
