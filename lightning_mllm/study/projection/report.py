"""Writes what the study found: results, answers, tables, verdicts, figures and `report.md`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lightning_mllm.store.files import write_csv_file, write_text
from lightning_mllm.study.engine.cell_folder import finished_cell_folders
from lightning_mllm.study.engine.markdown import pictures_as_markdown, unfinished_as_markdown
from lightning_mllm.study.projection.answers import write_answers
from lightning_mllm.study.projection.cells import ProjectionFolder
from lightning_mllm.study.projection.comparison import DomainComparison, compare_domains
from lightning_mllm.study.projection.figures import draw_projection_figures
from lightning_mllm.study.projection.scores import COLUMNS, collect_projection_scores
from lightning_mllm.study.projection.study import ProjectionStudy
from lightning_mllm.study.projection.tables import (
    TABLE_COLUMNS,
    VERDICT_COLUMNS,
    TableEntry,
    projection_table_as_markdown,
    projection_verdict_table_row,
    projection_verdicts_table,
    table_1,
    table_2,
)
from lightning_mllm.study.projection.verdict import DIFFERENCE, TREND, projection_verdicts

TableMaker = Callable[[DomainComparison, str, Sequence[str]], list[TableEntry]]


def write_projection_report(
    study: ProjectionStudy, folders: Sequence[ProjectionFolder]
) -> Path | None:
    """Write the results of the finished cells.

    Args:
        study: The study.
        folders: The folders of all cells of the grid.

    Returns:
        `report.md`; None while no cell is finished.

    Raises:
        DataError: A file of a finished cell is missing, or can't be read.
    """
    done = finished_cell_folders(folders)
    if not done:
        return None
    results = collect_projection_scores(study, done)
    write_csv_file(study.folder / "results.csv", COLUMNS, [result.row() for result in results])
    write_answers(study, done, study.folder / "answers.csv.gz")
    comparisons = compare_domains(study, done)
    sections = [
        f"# {study.name}\n\n{len(done)} of {len(folders)} cells are finished.\n"
        + "\n".join(_introduction(study, comparisons, folders)),
        *_write_table(study, done, comparisons, 1, table_1),
        *_write_table(study, done, comparisons, 2, table_2),
        _write_verdicts(study, comparisons),
        *pictures_as_markdown(draw_projection_figures(study, comparisons, results), study.folder),
        *unfinished_as_markdown(folders),
    ]
    return write_text(study.folder / "report.md", "\n\n".join(sections) + "\n")


def _introduction(
    study: ProjectionStudy,
    comparisons: Sequence[DomainComparison],
    folders: Sequence[ProjectionFolder],
) -> Iterator[str]:
    """Yield what the numbers mean, which seeds are compared, and which cells have several names."""
    yield (
        "Brackets: 95 % intervals over seeds, test samples and, of probes, training samples, from "
        "a t distribution with the variance of a bootstrap."
    )
    yield f"Answers are those of the scorer `{study.scorer}`."
    if study.richness is not None:
        probe, point = study.richness.probe, study.richness.point
        yield f"Richness is the test macro-F1 of the probe `{probe}` at `{point}`."
    files = ", ".join(f"`{file}`" for file in study.zero_shot)
    yield (
        "Zero-shot has one cell per domain and seed. All presets are compared with it, whatever "
        f"their own prompt is; its config files are {files}.\n"
    )
    yield "Seeds that are compared, those finished for every model that has a finished cell:\n"
    compared = {(each.checkpoint, each.domain): each.seeds for each in comparisons}
    for checkpoint in study.checkpoints:
        for domain in study.domains:
            seeds = ", ".join(map(str, compared.get((checkpoint, domain), ())))
            yield f"- {checkpoint}, {domain}: {seeds or 'none'}"
    yield from _shared_cells(folders)


def _shared_cells(folders: Sequence[ProjectionFolder]) -> Iterator[str]:
    """Yield which policies are the same run under several presets, if there are such."""
    lines: dict[str, None] = {}  # each once, in order
    for folder in folders:
        cell = folder.cell
        if cell.also:
            lines[f"- {cell.policy} of {cell.preset} is that of {' and '.join(cell.also)}"] = None
    if lines:
        yield "\nRuns that count under several presets, since these train in the same way:\n"
        yield from lines


def _write_table(
    study: ProjectionStudy,
    done: Sequence[ProjectionFolder],
    comparisons: Sequence[DomainComparison],
    number: int,
    make_table: TableMaker,
) -> list[str]:
    """Write a table of all presets as CSV, and return its sections, one per preset."""
    sections: list[str] = []
    rows = []
    for checkpoint, preset, policies in _trained_presets(study, done):
        entries: list[TableEntry] = []
        for comparison in comparisons:
            if comparison.checkpoint == checkpoint:
                entries += make_table(comparison, preset, policies)
        title = f"## Table {number}: {checkpoint}, {preset}"
        sections.append(f"{title}\n\n{projection_table_as_markdown(entries)}")
        rows += [entry.row() for entry in entries]
    write_csv_file(study.folder / f"table{number}.csv", TABLE_COLUMNS, rows)
    return sections


def _trained_presets(
    study: ProjectionStudy, done: Sequence[ProjectionFolder]
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield checkpoint, preset and policies of each table."""
    for checkpoint in study.checkpoints:
        policies: dict[str, dict[str, None]] = {}  # of each preset, in order
        for folder in done:
            if folder.cell.checkpoint == checkpoint and folder.cell.trains:
                for preset in folder.cell.presets:
                    policies.setdefault(preset, {})[folder.cell.policy] = None
        for preset, trained in policies.items():
            yield checkpoint, preset, list(trained)


def _write_verdicts(study: ProjectionStudy, comparisons: Sequence[DomainComparison]) -> str:
    """Write the verdicts as CSV, and return their section."""
    found = projection_verdicts(study, comparisons)
    rows = [projection_verdict_table_row(verdict) for verdict in found]
    write_csv_file(study.folder / "verdict.csv", VERDICT_COLUMNS, rows)
    about = f"Tests: {DIFFERENCE}" + (f"; of the sweep: {TREND}." if study.sweep else ".")
    if len(study.seeds) < 2:
        about += " With a single seed nothing is known about other seeds: all is undecided."
    elif len(study.seeds) < 5:
        about += (
            f" With {len(study.seeds)} seeds, only differences that are large compared with those "
            "between seeds can hold."
        )
    return f"## Verdicts\n\n{about}\n\n{projection_verdicts_table(found)}"
