"""Chooses the numbers that the study's figures show; each figure has them beside it, as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lightning_mllm.statistics.interval import mean_interval
from lightning_mllm.statistics.seeds_and_samples import Measure, SeedScores
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.study.projection.comparison import DomainComparison
from lightning_mllm.study.projection.scores import ProjectionScore
from lightning_mllm.study.projection.study import ZERO_SHOT, ProjectionStudy
from lightning_mllm.tracking.figures import FigureKind
from lightning_mllm.tracking.figures.study import (
    StudyPoint,
    StudySlope,
    draw_study_lines,
    draw_study_slopes,
)

_RICHNESS_LABEL = "Richness: macro-F1 of the probe"
_SLOPE_PLOTS: dict[str, tuple[Measure, str]] = {  # name -> the measure and label of the y-axis
    "slopes": ("macro_f1", "MLLM macro-F1"),
    "slopes-accuracy": ("accuracy", "MLLM accuracy"),
}
_SLOPE_COLUMNS = (
    *("panel", "domain", "policy"),
    *("richness_before", "score_before", "richness_after", "score_after"),
    *("richness_low_95", "richness_high_95", "score_low_95", "score_high_95"),
)
_CURVE_COLUMNS = ("panel", "line", "epoch", "mean", "seeds", "low_95", "high_95")


def draw_projection_figures(
    study: ProjectionStudy,
    comparisons: Sequence[DomainComparison],
    results: Sequence[ProjectionScore],
) -> list[Path]:
    """Draw the figures that there are numbers for."""
    folder = study.folder / "figures"
    kind = study.figures
    pictures = _draw_slopes(comparisons, folder, kind)
    if study.richness is not None:
        measure = f"val/probe/{study.richness.point}/{study.richness.probe}/macro_f1"
        label = f"{_RICHNESS_LABEL} (validation)"
        chance = {}
        for each in comparisons:
            chance[f"{each.checkpoint}, {each.domain}"] = each.uniform["macro_f1"]
        pictures += _draw_curves(results, measure, folder / f"richness.{kind}", label, chance)
    for stale in folder.glob("drift*"):  # perhaps of points that are not drawn any more
        stale.unlink()
    drifts = [result.measure for result in results if result.measure.startswith("drift/")]
    points = sorted({measure.split("/")[1] for measure in drifts})
    for point in points:
        label = f"Linear CKA with before training ({point})"
        name = "drift" if len(points) == 1 else f"drift-{point}"
        pictures += _draw_curves(results, f"drift/{point}/cka", folder / f"{name}.{kind}", label)
    return pictures


def _draw_slopes(
    comparisons: Sequence[DomainComparison], folder: Path, kind: FigureKind
) -> list[Path]:
    pictures = []
    for name, (measure, ylabel) in _SLOPE_PLOTS.items():
        slopes = list(_slopes(comparisons, measure))
        if slopes:
            rows = []
            for slope in slopes:
                of_richness, of_score = slope.intervals
                where = (slope.panel, slope.group, slope.kind)
                rows.append([*where, *slope.before, *slope.after, *of_richness, *of_score])
            write_csv_file(folder / f"{name}.csv", _SLOPE_COLUMNS, rows)
            picture = draw_study_slopes(
                slopes,
                folder / f"{name}.{kind}",
                xlabel=_RICHNESS_LABEL,
                ylabel=ylabel,
                chance=[each.uniform[measure] for each in comparisons],
            )
            pictures.append(picture)
    return pictures


def _slopes(comparisons: Sequence[DomainComparison], measure: Measure) -> Iterator[StudySlope]:
    """Yield a line for each trained model that has both a richness and a score."""
    for each in comparisons:
        for answerer in each.scores:
            if answerer.kind != "richness" or answerer.policy == ZERO_SHOT:
                continue
            before = _point(each, ZERO_SHOT, answerer.preset, measure)
            after = _point(each, answerer.policy, answerer.preset, measure)
            if before is not None and after is not None:
                panel = f"{each.checkpoint}, {answerer.preset}"
                means = [score.mean for score in before], [score.mean for score in after]
                intervals = [score.interval for score in after]
                yield StudySlope(panel, each.domain, answerer.policy, *means, intervals)


def _point(
    comparison: DomainComparison, policy: str, preset: str, measure: Measure
) -> tuple[SeedScores, SeedScores] | None:
    """Return richness and score of a policy, if it has both."""
    richness = comparison.get("richness", policy, preset, "macro_f1")
    score = comparison.get("model", policy, preset, measure)
    if richness is None or score is None:
        return None
    return richness, score


def _draw_curves(
    results: Sequence[ProjectionScore],
    measure: str,
    output: Path,
    ylabel: str,
    chance: Mapping[str, float] | None = None,
) -> list[Path]:
    """Draw a measure over the epochs, averaged over the seeds."""
    values = _values_of_lines(results, measure)
    if not values:
        return []
    rows = []
    curves: dict[str, dict[str, dict[int, StudyPoint]]] = {}
    for (panel, label, epoch), of_seeds in values.items():
        mean, ends = mean_interval(np.array(of_seeds))
        point = StudyPoint(float(mean), *ends.tolist())
        rows.append([panel, label, epoch, mean, len(of_seeds), *ends])
        curves.setdefault(panel, {}).setdefault(label, {})[epoch] = point
    write_csv_file(output.with_suffix(".csv"), _CURVE_COLUMNS, rows)
    counts = {len(of_seeds) for of_seeds in values.values()}
    over = f"{min(counts)} seeds" if len(counts) == 1 else f"{min(counts)} to {max(counts)} seeds"
    return [draw_study_lines(curves, output, ylabel=ylabel, over=over, chance=chance)]


def _values_of_lines(
    results: Sequence[ProjectionScore], measure: str
) -> dict[tuple[str, str, int], list[float]]:
    """Return panel, line and epoch -> the values of the seeds.

    A run under several presets is one line, named after all of them.
    """
    presets: dict[str, dict[str, None]] = {}  # of each cell, in order
    found = []
    for result in results:
        if result.measure == measure and result.value is not None and result.preset:
            found.append(result)
            presets.setdefault(result.cell, {})[result.preset] = None
    values: dict[tuple[str, str, int], list[float]] = {}
    for result in found:
        same = list(presets[result.cell])
        if result.epoch is not None and result.value is not None and result.preset == same[0]:
            panel, label = f"{result.checkpoint}, {result.domain}", " = ".join(same)
            line = (panel, f"{label}, {result.policy}", result.epoch)
            values.setdefault(line, []).append(result.value)
    return values
