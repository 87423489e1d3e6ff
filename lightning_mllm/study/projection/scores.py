"""All numbers of all finished cells in one tidy table: a row per number and preset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from statistics import fmean

from lightning_mllm.study.projection.cell_files import clip_scores_of, drift_of, probes_of, scores_of
from lightning_mllm.study.projection.cells import CellFolder
from lightning_mllm.study.projection.study import Study

_SCORES = ("accuracy", "macro_f1", "invalid_rate")
_PROBE_SCORES = ("accuracy", "macro_f1", "control_accuracy")
_DRIFT = ("cka", "cosine", "weight_change")


@dataclass(frozen=True, kw_only=True)
class Result:
    """A number.

    Attributes:
        study: Name of the study.
        cell: Id of the cell; one that is of several presets has its numbers under each.
        checkpoint: Name of the checkpoint.
        domain: Name of the domain.
        policy: What was trained.
        preset: How; empty for zero-shot.
        seed: Of the cell.
        epoch: After which epoch, -1 before training; None for the model's test, which is after the last.
        measure: `test/<scorer>/<score>` (of CLIP's own answers `test/clip/<score>`),
            `<stage>/probe/<point>/<probe>/<score>` (the mean over the seeds of the probe), or
            `drift/<point>/<measure>`.
        value: The number; None where it is not defined.
        n: Number of samples behind it.
        low_95: Of its interval, over samples only.
        high_95: Likewise.
    """

    study: str
    cell: str
    checkpoint: str
    domain: str
    policy: str
    preset: str
    seed: int
    epoch: int | None
    measure: str
    value: float | None
    n: int | None = None
    low_95: float | None = None
    high_95: float | None = None

    def cells(self) -> tuple[object, ...]:
        """Return the row of the CSV file."""
        return astuple(self)


COLUMNS = tuple(field.name for field in fields(Result))


def collect(study: Study, done: Iterable[CellFolder]) -> list[Result]:
    """Return the numbers of finished cells, in the order of the grid.

    Raises:
        DataError: A file of a finished cell is missing.
    """
    found: list[Result] = []
    for folder in done:
        results = list(_results_of(study, folder))
        for preset in folder.cell.presets:
            found += [replace(result, preset=preset) for result in results]
    return found


def _results_of(study: Study, folder: CellFolder) -> Iterator[Result]:
    scorers = scores_of(folder)
    if (clip := clip_scores_of(folder)) is not None:
        scorers["clip"] = clip
    for scorer, scores in scorers.items():
        for name in _SCORES:
            low, high = scores.get(f"{name}_interval_95", (None, None))
            yield _result(
                study, folder, None, f"test/{scorer}/{name}", scores[name], n=scores["n"], low_95=low, high_95=high
            )
    if study.richness is not None:
        yield from _probe_results(study, folder)
    if study.drift and folder.cell.trains:
        for row in drift_of(folder):
            for name in _DRIFT:
                yield _result(study, folder, _epoch(row), f"drift/{row['point']}/{name}", _number(row, name))


def _probe_results(study: Study, folder: CellFolder) -> Iterator[Result]:
    """Average over the seeds of a probe, which differ in nothing else."""
    groups: dict[tuple[int | None, str], list[Mapping[str, str]]] = {}
    for row in probes_of(folder):
        name = "/".join([row["stage"], "probe", row["point"], row["probe"]])
        groups.setdefault((_epoch(row), name), []).append(row)
    for (epoch, name), rows in groups.items():
        for score in _PROBE_SCORES:
            values = [value for row in rows if (value := _number(row, score)) is not None]
            mean = fmean(values) if values else None
            yield _result(study, folder, epoch, f"{name}/{score}", mean, n=int(rows[0]["n_test"]))


def _result(  # noqa: PLR0917 - what, where, when, and the number
    study: Study,
    folder: CellFolder,
    epoch: int | None,
    measure: str,
    value: float | None,
    n: int | None = None,
    low_95: float | None = None,
    high_95: float | None = None,
) -> Result:
    cell = folder.cell
    return Result(
        study=study.name,
        cell=cell.id,
        checkpoint=cell.checkpoint,
        domain=cell.domain,
        policy=cell.policy,
        preset=cell.preset,
        seed=cell.seed,
        epoch=epoch,
        measure=measure,
        value=value,
        n=n,
        low_95=low_95,
        high_95=high_95,
    )


def _epoch(row: Mapping[str, str]) -> int | None:
    return int(row["epoch"]) if row["epoch"] else None


def _number(row: Mapping[str, str], name: str) -> float | None:
    return float(row[name]) if row.get(name) else None
