"""Writes what the study found: scores, correlations, verdicts, figures and `report.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_mllm.store.files import write_csv_file, write_text
from lightning_mllm.study.alignment.cells import MeasureFolder
from lightning_mllm.study.alignment.claims import claimed_measures, claimed_measures_by_sampling
from lightning_mllm.study.alignment.correlations import correlate_alignment
from lightning_mllm.study.alignment.figures import draw_alignment_figures
from lightning_mllm.study.alignment.scores import COLUMNS, CheckpointScore, collect_alignment_scores
from lightning_mllm.study.alignment.study import ALIGNMENT, AlignmentStudy
from lightning_mllm.study.alignment.tables import (
    CORRELATION_COLUMNS,
    VERDICT_COLUMNS,
    alignment_scores_table,
    alignment_verdict_table_row,
    alignment_verdicts_table,
    correlation_table_row,
    correlations_table,
)
from lightning_mllm.study.alignment.verdict import (
    TEST,
    alignment_verdicts,
    not_independent_for_alignment_verdict,
    too_few_for_alignment_verdict,
)
from lightning_mllm.study.engine.cell_folder import finished_cell_folders
from lightning_mllm.study.engine.markdown import pictures_as_markdown, unfinished_as_markdown

_CAVEAT = (
    "Brackets at scores: 95 % intervals over samples. Brackets at correlations: 95 % intervals of "
    "a bootstrap over checkpoints; they and the p-values take the checkpoints as independent "
    "draws. Checkpoints of one training, or of one base model, are not independent; then intervals "
    "and p-values are too small."
)


def write_alignment_report(study: AlignmentStudy, folders: Sequence[MeasureFolder]) -> Path | None:
    """Write the results of the finished cells.

    Args:
        study: The study.
        folders: The folders of all cells.

    Returns:
        `report.md`; None while no cell is finished.

    Raises:
        DataError: A file of a finished cell is missing, or can't be read.
    """
    done = finished_cell_folders(folders)
    if not done:
        return None
    scores = collect_alignment_scores(study, done)
    associations = correlate_alignment(study, scores)
    found = alignment_verdicts(study, associations)
    write_csv_file(study.folder / "scores.csv", COLUMNS, [score.row() for score in scores])
    rows = [correlation_table_row(each) for each in associations]
    write_csv_file(study.folder / "correlations.csv", CORRELATION_COLUMNS, rows)
    rows = [alignment_verdict_table_row(each) for each in found]
    write_csv_file(study.folder / "verdict.csv", VERDICT_COLUMNS, rows)
    sections = [f"# {study.name}\n\n{len(done)} of {len(folders)} cells are finished."]
    for statement in (
        too_few_for_alignment_verdict(study, associations),
        not_independent_for_alignment_verdict(study, scores),
    ):
        if statement:
            sections.append(f"**{statement}**")
    sections += [
        _CAVEAT,
        *_score_sections(study, scores),
        f"## Correlations over checkpoints\n\n{correlations_table(associations)}",
        f"## Verdicts\n\nTest: {TEST}.\n\n{alignment_verdicts_table(found)}",
        *pictures_as_markdown(draw_alignment_figures(study, scores, done), study.folder),
        *unfinished_as_markdown(folders),
    ]
    return write_text(study.folder / "report.md", "\n\n".join(sections) + "\n")


def _score_sections(study: AlignmentStudy, scores: Sequence[CheckpointScore]) -> list[str]:
    """Return the section of the scores, and that of POPE per way of drawing absent objects."""
    measures = [f"{ALIGNMENT}/{reading}" for reading in study.readings]
    measures += claimed_measures(study, scores)
    sections = [f"## Scores\n\n{alignment_scores_table(scores, measures)}"]
    by_sampling = claimed_measures_by_sampling(scores)
    if by_sampling:
        title = "## POPE by how absent objects were drawn"
        sections.append(f"{title}\n\n{alignment_scores_table(scores, by_sampling)}")
    return sections
