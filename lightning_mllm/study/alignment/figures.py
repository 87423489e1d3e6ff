"""Chooses the numbers that the study's figures show; each figure has them beside it, as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.statistics.jackknife import GROUPS
from lightning_mllm.store.files import write_csv_file
from lightning_mllm.study.alignment.cells import MeasureFolder
from lightning_mllm.study.alignment.claims import claimed_measures
from lightning_mllm.study.alignment.correlations import correlated_checkpoints, table_to_correlate
from lightning_mllm.study.alignment.scores import CheckpointScore, alignment_score_curves
from lightning_mllm.study.alignment.study import ALIGNMENT, AlignmentStudy
from lightning_mllm.tracking.figures.study import (
    Curve,
    StudyDot,
    draw_study_dots,
    draw_study_lines,
)

_DOT_COLUMNS = (
    *("measure", "checkpoint", "score", "value"),
    *("score_low_95", "score_high_95", "value_low_95", "value_high_95"),
)
_CURVE_COLUMNS = ("score", "checkpoint", "layer", "value", "low_95", "high_95")
_NO_INTERVAL = (None, None)


def draw_alignment_figures(
    study: AlignmentStudy, scores: Sequence[CheckpointScore], done: Sequence[MeasureFolder]
) -> list[Path]:
    """Draw the figures that there are numbers for."""
    return [*_draw_dots(study, scores), *_draw_curves(study, done)]


def _draw_dots(study: AlignmentStudy, scores: Sequence[CheckpointScore]) -> list[Path]:
    """Draw, for each reading, the measures over the score: a dot per checkpoint."""
    pictures = []
    for reading in study.readings:
        dots = _dots(study, scores, reading)
        if dots:
            path = study.folder / "figures" / f"score-{reading.replace(' ', '-')}.{study.figures}"
            rows = []
            for dot in dots:
                x_ends, y_ends = dot.x_interval or _NO_INTERVAL, dot.y_interval or _NO_INTERVAL
                rows.append([dot.panel, dot.label, dot.x, dot.y, *x_ends, *y_ends])
            write_csv_file(path.with_suffix(".csv"), _DOT_COLUMNS, rows)
            pictures.append(draw_study_dots(dots, path, xlabel=f"Alignment score: {reading}"))
    return pictures


def _dots(study: AlignmentStudy, scores: Sequence[CheckpointScore], reading: str) -> list[StudyDot]:
    """Return a dot for each measure and checkpoint that has both numbers."""
    table = table_to_correlate(scores)
    dots = []
    for measure in claimed_measures(study, scores):
        for checkpoint in correlated_checkpoints(scores):
            ours = table.get((checkpoint, f"{ALIGNMENT}/{reading}"))
            theirs = table.get((checkpoint, measure))
            if ours is None or theirs is None or ours.value is None or theirs.value is None:
                continue
            dot = StudyDot(
                panel=measure,
                label=checkpoint,
                x=ours.value,
                y=theirs.value,
                x_interval=ours.interval,
                y_interval=theirs.interval,
            )
            dots.append(dot)
    return dots


def _draw_curves(study: AlignmentStudy, done: Sequence[MeasureFolder]) -> list[Path]:
    """Draw the alignment of each checkpoint layer by layer."""
    panels: dict[str, dict[str, Curve]] = {reading: {} for reading in study.readings}
    for folder in done:
        if folder.cell.measure == ALIGNMENT:
            for reading, found in alignment_score_curves(study, folder).items():
                panels[reading][folder.cell.checkpoint] = found
    rows = []
    for reading, lines in panels.items():
        for checkpoint, curve in lines.items():
            for layer, point in curve.items():
                rows.append([reading, checkpoint, layer, *point])
    if not rows:
        return []
    path = study.folder / "figures" / f"layers.{study.figures}"
    write_csv_file(path.with_suffix(".csv"), _CURVE_COLUMNS, rows)
    xlabel = "After how many layers (0: the LLM's input)"
    return [draw_study_lines(panels, path, ylabel="Cosine", xlabel=xlabel, over=GROUPS)]
