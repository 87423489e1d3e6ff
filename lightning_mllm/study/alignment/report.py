"""Writes what an alignment study found: scores, correlations and verdicts as CSV, figures, and `report.md`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_mllm.statistics.correlation import Correlation
from lightning_mllm.store.files import write_rows, write_text
from lightning_mllm.study.alignment.scores import COLUMNS, Score, curves_of_cell, scores_of_cell
from lightning_mllm.study.alignment.study import ALIGNMENT, AlignmentStudy, MeasureFolder
from lightning_mllm.study.alignment.verdict import (
    TEST,
    AlignmentVerdict,
    Association,
    associate,
    measures_of,
    measures_of_drawing,
    not_independent,
    too_few,
    verdicts,
)
from lightning_mllm.study.engine.cell_folder import State
from lightning_mllm.study.engine.markdown import markdown
from lightning_mllm.tracking.figures.study import Dot, dot_plot, epoch_plot

_CORRELATION = ("value", "low_95", "high_95", "p", "n")
_VERDICT = (
    *("score", "claim", "part", "verdict", "spearman", "spearman_of_origins", "p_holm", "checkpoints", "origins"),
    "test",
)
_DOT = ("measure", "checkpoint", "score", "value", "score_low_95", "score_high_95", "value_low_95", "value_high_95")
_NONE = (None, None)
_CAVEAT = (
    "Brackets at scores: 95 % intervals over samples. Brackets at correlations: 95 % intervals of a bootstrap over "
    "checkpoints; they and the p-values take the checkpoints as independent draws. Those of one training, or of one "
    "base model, are not, and then both are too sure of themselves."
)


def write_report(study: AlignmentStudy, folders: Sequence[MeasureFolder]) -> Path | None:
    """Write the results of the finished cells.

    Args:
        study: The study.
        folders: All cells.

    Returns:
        `report.md`; None while no cell is finished.

    Raises:
        DataError: A file of a finished cell is missing, or can't be read.
    """
    done = [folder for folder in folders if folder.state is State.DONE]
    if not done:
        return None
    scores = [score for folder in done for score in scores_of_cell(study, folder)]
    associations = associate(study, scores)
    found = verdicts(study, associations)
    write_rows(study.folder / "scores.csv", COLUMNS, (score.cells() for score in scores))
    columns = [
        "score",
        "measure",
        "origins",
        *(f"{kind}_{name}" for kind in ("pearson", "spearman") for name in _CORRELATION),
    ]
    write_rows(study.folder / "correlations.csv", columns, map(_association_row, associations))
    write_rows(study.folder / "verdict.csv", _VERDICT, map(_verdict_row, found))
    statements = too_few(study, associations), not_independent(study, scores)
    readings, drawn = [f"{ALIGNMENT}/{reading}" for reading in study.readings], measures_of_drawing(scores)
    sections = [
        f"# {study.name}\n\n{len(done)} of {len(folders)} cells are finished.",
        *(f"**{statement}**" for statement in statements if statement),
        _CAVEAT,
        f"## Scores\n\n{_scores_table(scores, [*readings, *measures_of(study, scores)])}",
        *([f"## POPE by how absent objects were drawn\n\n{_scores_table(scores, drawn)}"] if drawn else []),
        f"## Correlations over checkpoints\n\n{_correlations_table(associations)}",
        f"## Verdicts\n\nTest: {TEST}.\n\n{_verdicts_table(found)}",
    ]
    pictures = [*_draw_dots(study, scores), *_draw_curves(study, done)]
    sections += [f"![{path.stem}]({path.relative_to(study.folder).as_posix()})" for path in pictures]
    missing = [f"- {folder.cell.id}: {folder.state}" for folder in folders if folder.state is not State.DONE]
    if missing:
        sections.append("\n".join(["## Cells that are not finished\n", *missing]))
    return write_text(study.folder / "report.md", "\n\n".join(sections) + "\n")


def _scores_table(scores: Sequence[Score], measures: Sequence[str]) -> str:
    """Return a row per checkpoint, with some of its numbers."""
    texts = {(s.checkpoint, s.measure): f"{_number(s.value)}{_interval(s.low_95, s.high_95)}" for s in scores}
    rows = [
        [checkpoint, *(texts.get((checkpoint, measure), "") for measure in measures)]
        for checkpoint in dict.fromkeys(score.checkpoint for score in scores)
    ]
    return markdown(["checkpoint", *measures], rows)


def _correlations_table(associations: Iterable[Association]) -> str:
    rows = [
        [a.reading, a.measure, _n(a.spearman.n, a.origins), _text(a.pearson), _text(a.spearman)] for a in associations
    ]
    return markdown(["score", "measure", "N", "Pearson", "Spearman"], rows)


def _verdicts_table(found: Iterable[AlignmentVerdict]) -> str:
    rows = []
    for each in found:
        tested = "" if each.adjusted_p is None else f" ({_number(each.of_origins)}, {_p(each.adjusted_p)})"
        decision = f"{each.decision}{tested}" if each.part else f"**{each.decision}**"
        name = f"- {each.part}" if each.part else f"**{each.claim}**"
        rows.append([each.reading, name, decision, _n(each.checkpoints, each.origins)])
    return markdown(["score", "claim", "verdict", "N"], rows)


def _association_row(each: Association) -> list[Any]:
    return [
        *(each.reading, each.measure, each.origins),
        *(number for c in (each.pearson, each.spearman) for number in (c.value, *c.interval, c.p, c.n)),
    ]


def _verdict_row(each: AlignmentVerdict) -> list[Any]:
    numbers = each.spearman, each.of_origins, each.adjusted_p, each.checkpoints, each.origins
    return [each.reading, each.claim, each.part, str(each.decision), *numbers, TEST]


def _draw_dots(study: AlignmentStudy, scores: Sequence[Score]) -> list[Path]:
    """Draw, for each reading, the measures over the score: a dot per checkpoint."""
    table = {(score.checkpoint, score.measure): score for score in scores}
    pictures = []
    for reading in study.readings:
        dots = [
            dot
            for measure in measures_of(study, scores)
            for checkpoint in dict.fromkeys(score.checkpoint for score in scores)
            if (dot := _dot(table.get((checkpoint, f"{ALIGNMENT}/{reading}")), table.get((checkpoint, measure))))
        ]
        if dots:
            path = study.folder / "figures" / f"score-{reading.replace(' ', '-')}.png"
            rows = ([d.panel, d.label, d.x, d.y, *(d.x_interval or _NONE), *(d.y_interval or _NONE)] for d in dots)
            write_rows(path.with_suffix(".csv"), _DOT, rows)
            pictures.append(dot_plot(dots, path, xlabel=f"Alignment score: {reading}"))
    return pictures


def _dot(ours: Score | None, theirs: Score | None) -> Dot | None:
    """Return the dot of an alignment score and what it is set beside, if both are there."""
    if ours is None or theirs is None or ours.value is None or theirs.value is None:
        return None
    intervals = (
        None if score.low_95 is None or score.high_95 is None else (score.low_95, score.high_95)
        for score in (ours, theirs)
    )
    return Dot(theirs.measure, theirs.checkpoint, ours.value, theirs.value, *intervals)


def _draw_curves(study: AlignmentStudy, done: Sequence[MeasureFolder]) -> list[Path]:
    """Draw the alignment of each checkpoint layer by layer."""
    found = {f.cell.checkpoint: curves_of_cell(study, f) for f in done if f.cell.measure == ALIGNMENT}
    if not found:
        return []
    panels = {reading: {name: curves[reading] for name, curves in found.items()} for reading in study.readings}
    rows = [
        [reading, name, layer, value]
        for reading, lines in panels.items()
        for name, curve in lines.items()
        for layer, value in curve.items()
    ]
    path = study.folder / "figures" / "layers.png"
    write_rows(path.with_suffix(".csv"), ["score", "checkpoint", "layer", "value"], rows)
    return [epoch_plot(panels, path, ylabel="Cosine", xlabel="Layers behind (0: the LLM's input)")]


def _n(checkpoints: int, origins: int) -> str:
    return str(checkpoints) if origins == checkpoints else f"{checkpoints} of {origins} origin{'s' * (origins != 1)}"


def _text(each: Correlation) -> str:
    return f"{_number(each.value)}{_interval(*each.interval)}, {_p(each.p)}"


def _interval(low: float | None, high: float | None) -> str:
    there = _number(low), _number(high)
    return f" [{', '.join(there)}]" if "-" not in there else ""


def _number(value: float | None) -> str:
    """Return three decimals; a dash for nothing."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "p < 0.001" if value is not None and value < 0.001 else f"p {_number(value)}"
