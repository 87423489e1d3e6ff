"""Chooses the numbers that a study's figures show; each figure has them beside it, as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from lightning_mllm.statistics.seeds_and_samples import Measure
from lightning_mllm.store.files import write_rows
from lightning_mllm.study.projection.comparison import Comparison
from lightning_mllm.study.projection.scores import Result
from lightning_mllm.study.projection.study import ZERO_SHOT, Study
from lightning_mllm.tracking.figures.study import Slope, epoch_plot, slope_plot

_RICHNESS_LABEL = "Richness: macro-F1 of the probe"
_SCORES: dict[str, tuple[Measure, str]] = {  # name of the slope plot -> its upright axis
    "slopes": ("macro_f1", "MLLM macro-F1"),
    "slopes-accuracy": ("accuracy", "MLLM accuracy"),
}
_SLOPE_COLUMNS = ("panel", "domain", "policy", "richness_before", "score_before", "richness_after", "score_after")


def draw(study: Study, comparisons: Sequence[Comparison], results: Sequence[Result]) -> list[Path]:
    """Draw the figures that there are numbers for."""
    folder = study.folder / "figures"
    pictures = []
    for name, (measure, ylabel) in _SCORES.items():
        if slopes := list(_slopes(comparisons, measure)):
            rows = [[s.panel, s.group, s.kind, *s.before, *s.after] for s in slopes]
            write_rows(folder / f"{name}.csv", _SLOPE_COLUMNS, rows)
            pictures.append(slope_plot(slopes, folder / f"{name}.png", xlabel=_RICHNESS_LABEL, ylabel=ylabel))
    if (richness := study.richness) is not None:
        probe = f"val/probe/{richness.point}/{richness.probe}/macro_f1"
        pictures += _curves(results, probe, folder / "richness.png", f"{_RICHNESS_LABEL} (validation)")
    for stale in folder.glob("drift*"):  # perhaps of points that are not drawn any more
        stale.unlink()
    drifts = {result.measure.split("/")[1] for result in results if result.measure.startswith("drift/")}
    for point in sorted(drifts):
        label = f"Linear CKA with before training ({point})"
        name = "drift" if len(drifts) == 1 else f"drift-{point}"
        pictures += _curves(results, f"drift/{point}/cka", folder / f"{name}.png", label)
    return pictures


def _slopes(comparisons: Sequence[Comparison], measure: Measure) -> Iterator[Slope]:
    for each in comparisons:
        for who in each.scores:
            if who.kind != "richness" or who.policy == ZERO_SHOT:
                continue
            points = []
            for policy in (ZERO_SHOT, who.policy):
                richness = each.get("richness", policy, who.preset, "macro_f1")
                score = each.get("model", policy, who.preset, measure)
                if richness is not None and score is not None:
                    points.append((richness.mean, score.mean))
            if len(points) == 2:
                yield Slope(f"{each.checkpoint}, {who.preset}", each.domain, who.policy, points[0], points[1])


def _curves(results: Sequence[Result], measure: str, output: Path, ylabel: str) -> list[Path]:
    """Draw a measure over the epochs, averaged over the seeds; a run under several presets is one line."""
    found = [each for each in results if each.measure == measure and each.value is not None and each.preset]
    presets: dict[str, dict[str, None]] = {}  # of each cell, in order
    for result in found:
        presets.setdefault(result.cell, {})[result.preset] = None
    values: dict[tuple[str, str, int], list[float]] = {}
    for result in found:
        first, *_ = same = list(presets[result.cell])
        if result.epoch is not None and result.value is not None and result.preset == first:
            line = (f"{result.checkpoint}, {result.domain}", f"{' = '.join(same)}, {result.policy}", result.epoch)
            values.setdefault(line, []).append(result.value)
    if not values:
        return []
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for (panel, label, epoch), of_seeds in values.items():
        curves.setdefault(panel, {}).setdefault(label, {})[epoch] = fmean(of_seeds)
    rows = [[*line, fmean(of_seeds), len(of_seeds)] for line, of_seeds in values.items()]
    write_rows(output.with_suffix(".csv"), ["panel", "line", "epoch", "mean", "seeds"], rows)
    return [epoch_plot(curves, output, ylabel=ylabel)]
