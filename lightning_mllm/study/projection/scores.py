"""All numbers of all finished cells of the projection study: a row per number and preset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from statistics import fmean

from lightning_mllm.study.engine.outputs import Row
from lightning_mllm.study.projection.cell_files import (
    clip_scores_in_cell_files,
    drift_in_cell_files,
    probes_and_answers_in_cell_files,
    probes_in_cell_files,
    scores_in_cell_files,
)
from lightning_mllm.study.projection.cells import ProjectionFolder
from lightning_mllm.study.projection.study import ProjectionStudy

_SCORES = ("accuracy", "macro_f1", "invalid_rate")
_PROBE_SCORES = ("accuracy", "macro_f1", "control_accuracy")
_CELLS = ("both_right", "probe_only", "model_only", "both_wrong")
_DRIFT = ("cka", "cosine", "weight_change")


@dataclass(frozen=True, kw_only=True)
class ProjectionScore:
    """A number of a cell.

    Attributes:
        study: Name of the study.
        cell: Id of the cell; a cell of several presets has its numbers under each.
        checkpoint: Name of the checkpoint.
        domain: Name of the domain.
        policy: Which parts were trained.
        preset: How they were trained; empty for zero-shot.
        seed: Seed of the cell.
        epoch: Epoch after which it was measured, -1 for before training; None for the model's test,
            which is after the last epoch.
        measure: `test/<scorer>/<score>`, for CLIP's own answers `test/clip/<score>`;
            `<stage>/probe/<point>/<probe>/<score>`, the mean over the seeds of the probe;
            `<stage>/probe/<point>/<probe>/<scorer>/<cell>`, the share of the samples that probe
            and model, the probe alone, the model alone, or neither gets right; or
            `drift/<point>/<measure>`.
        value: The number; None where it is not defined.
        n: Number of samples that it is computed from.
        low_95: Lower end of its 95 % interval, over samples only.
        high_95: Upper end of its 95 % interval, over samples only.
    """

    study: str
    cell: str
    checkpoint: str
    domain: str
    policy: str
    preset: str
    seed: int
    epoch: int | None = None
    measure: str = ""
    value: float | None = None
    n: int | None = None
    low_95: float | None = None
    high_95: float | None = None

    def row(self) -> tuple[object, ...]:
        """Return the row of the CSV file."""
        return astuple(self)


COLUMNS = tuple(field.name for field in fields(ProjectionScore))


def collect_projection_scores(
    study: ProjectionStudy, done: Iterable[ProjectionFolder]
) -> list[ProjectionScore]:
    """Return the numbers of finished cells, in the order of the grid.

    Raises:
        DataError: A file of a finished cell is missing.
    """
    found: list[ProjectionScore] = []
    for folder in done:
        results = list(_results_of(study, folder))
        for preset in folder.cell.presets:
            found += [replace(result, preset=preset) for result in results]
    return found


def _results_of(study: ProjectionStudy, folder: ProjectionFolder) -> Iterator[ProjectionScore]:
    cell = folder.cell
    blank = ProjectionScore(
        study=study.name,
        cell=cell.id,
        checkpoint=cell.checkpoint,
        domain=cell.domain,
        policy=cell.policy,
        preset=cell.preset,
        seed=cell.seed,
    )
    yield from _test_results(folder, blank)
    if study.richness is not None:
        yield from _probe_results(folder, blank)
        yield from _cell_results(folder, blank)
    if study.drift and cell.trains:
        for row in drift_in_cell_files(folder):
            for name in _DRIFT:
                measure, value = f"drift/{row['point']}/{name}", _number(row, name)
                yield replace(blank, epoch=_epoch(row), measure=measure, value=value)


def _test_results(folder: ProjectionFolder, blank: ProjectionScore) -> Iterator[ProjectionScore]:
    """Yield the scores of the model's answers, and of CLIP's."""
    scorers = scores_in_cell_files(folder)
    clip = clip_scores_in_cell_files(folder)
    if clip is not None:
        scorers["clip"] = clip
    for scorer, scores in scorers.items():
        for name in _SCORES:
            low, high = scores.get(f"{name}_interval_95", (None, None))
            yield replace(
                blank,
                measure=f"test/{scorer}/{name}",
                value=scores[name],
                n=scores["n"],
                low_95=low,
                high_95=high,
            )


def _probe_results(folder: ProjectionFolder, blank: ProjectionScore) -> Iterator[ProjectionScore]:
    """Yield the scores of probes, averaged over their seeds."""
    groups: dict[tuple[int | None, str], list[Row]] = {}
    for row in probes_in_cell_files(folder):
        name = "/".join([row["stage"], "probe", row["point"], row["probe"]])
        groups.setdefault((_epoch(row), name), []).append(row)
    for (epoch, name), rows in groups.items():
        for score in _PROBE_SCORES:
            yield replace(
                blank,
                epoch=epoch,
                measure=f"{name}/{score}",
                value=_mean(rows, score),
                n=int(rows[0]["n_test"]),
            )


def _cell_results(folder: ProjectionFolder, blank: ProjectionScore) -> Iterator[ProjectionScore]:
    """Yield how probes and the model's answers fall together."""
    for row in probes_and_answers_in_cell_files(folder):
        name = "/".join([row["stage"], "probe", row["point"], row["probe"], row["scorer"]])
        for cell in _CELLS:
            yield replace(
                blank,
                epoch=_epoch(row),
                measure=f"{name}/{cell}",
                value=_number(row, cell),
                n=int(row["n"]),
                low_95=_number(row, f"{cell}_low_95"),
                high_95=_number(row, f"{cell}_high_95"),
            )


def _mean(rows: Iterable[Row], name: str) -> float | None:
    values = [float(row[name]) for row in rows if row.get(name)]
    return fmean(values) if values else None


def _epoch(row: Row) -> int | None:
    return int(row["epoch"]) if row["epoch"] else None


def _number(row: Row, name: str) -> float | None:
    return float(row[name]) if row.get(name) else None
