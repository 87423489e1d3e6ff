"""Writes what a study found: `results.csv`, `answers.csv.gz`, tables, verdicts and figures, and `report.md`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lightning_mllm.store.files import write_rows, write_text
from lightning_mllm.study.engine.cell_folder import State
from lightning_mllm.study.projection.answers import write_answers
from lightning_mllm.study.projection.cells import CellFolder
from lightning_mllm.study.projection.comparison import Comparison, compare
from lightning_mllm.study.projection.figures import draw
from lightning_mllm.study.projection.scores import COLUMNS, collect
from lightning_mllm.study.projection.study import Study
from lightning_mllm.study.projection.tables import (
    TABLE_COLUMNS,
    VERDICT_COLUMNS,
    Entry,
    as_markdown,
    table_1,
    table_2,
    verdict_row,
    verdicts_as_markdown,
)
from lightning_mllm.study.projection.verdict import DIFFERENCE, TREND, verdicts


def write_report(study: Study, folders: Sequence[CellFolder]) -> Path | None:
    """Write the results of the finished cells.

    Args:
        study: The study.
        folders: All cells of the grid.

    Returns:
        `report.md`; None while no cell is finished.

    Raises:
        DataError: A file of a finished cell is missing, or can't be read.
    """
    done = [folder for folder in folders if folder.state is State.DONE]
    if not done:
        return None
    results = collect(study, done)
    write_rows(study.folder / "results.csv", COLUMNS, (result.cells() for result in results))
    write_answers(study, done, study.folder / "answers.csv.gz")
    comparisons = compare(study, done)
    sections = [_introduction(study, folders, done, comparisons)]
    for number, table in enumerate((table_1, table_2), 1):
        sections += _tables(study, done, comparisons, number, table)
    found = verdicts(study, comparisons)
    write_rows(study.folder / "verdict.csv", VERDICT_COLUMNS, (verdict_row(verdict) for verdict in found))
    sections.append(f"## Verdicts\n\n{_about_verdicts(study)}\n\n{verdicts_as_markdown(found)}")
    pictures = draw(study, comparisons, results)
    sections += [f"![{path.stem}]({path.relative_to(study.folder).as_posix()})" for path in pictures]
    missing = [f"- {folder.cell.id}: {folder.state}" for folder in folders if folder.state is not State.DONE]
    if missing:
        sections.append("\n".join(["## Cells that are not finished\n", *missing]))
    return write_text(study.folder / "report.md", "\n\n".join(sections) + "\n")


def _introduction(
    study: Study, folders: Sequence[CellFolder], done: Sequence[CellFolder], comparisons: Sequence[Comparison]
) -> str:
    """Return how much is finished, what is compared, and what is the same run under several names."""
    lines = [f"# {study.name}\n", f"{len(done)} of {len(folders)} cells are finished."]
    lines.append(
        "Brackets: 95 % intervals over seeds, test samples and, of probes, training samples, from a t distribution "
        "with the variance of a bootstrap."
    )
    lines.append(f"Answers are those of the scorer `{study.scorer}`.")
    if (richness := study.richness) is not None:
        lines.append(f"Richness is the test macro-F1 of the probe `{richness.probe}` at `{richness.point}`.")
    lines.append(
        f"Zero-shot has one cell per domain and seed, which all presets are compared with, whatever their own way of "
        f"asking: it is that of {', '.join(f'`{file}`' for file in study.zero_shot)}.\n"
    )
    lines += ["Seeds that are compared, being finished for every model that has a finished cell:\n"]
    seeds = {(each.checkpoint, each.domain): each.seeds for each in comparisons}
    for checkpoint in study.checkpoints:
        for domain in study.domains:
            those = ", ".join(map(str, seeds.get((checkpoint, domain), ()))) or "none"
            lines.append(f"- {checkpoint}, {domain}: {those}")
    same = dict.fromkeys((cell.preset, cell.policy, cell.also) for cell in (f.cell for f in folders) if cell.also)
    if same:
        lines.append("\nThe same runs under several presets, since their configs say the same:\n")
    for preset, policy, also in same:
        lines.append(f"- {policy} of {preset} is that of {' and '.join(also)}")
    return "\n".join(lines)


def _tables(
    study: Study,
    done: Sequence[CellFolder],
    comparisons: Sequence[Comparison],
    number: int,
    table: Callable[[Comparison, str, Sequence[str]], list[Entry]],
) -> list[str]:
    """Write a table of all presets as CSV, and return it preset by preset."""
    sections: list[str] = []
    entries: list[Entry] = []
    for checkpoint, preset, policies in _models(study, done):
        those = [each for each in comparisons if each.checkpoint == checkpoint]
        of_preset = [entry for each in those for entry in table(each, preset, policies)]
        sections.append(f"## Table {number}: {checkpoint}, {preset}\n\n{as_markdown(of_preset)}")
        entries += of_preset
    write_rows(study.folder / f"table{number}.csv", TABLE_COLUMNS, (entry.cells() for entry in entries))
    return sections


def _models(study: Study, done: Sequence[CellFolder]) -> Iterator[tuple[str, str, list[str]]]:
    """Give checkpoint, preset and policies of each table."""
    for checkpoint in study.checkpoints:
        cells = [folder.cell for folder in done if folder.cell.checkpoint == checkpoint and folder.cell.trains]
        for preset in dict.fromkeys(preset for cell in cells for preset in cell.presets):
            yield checkpoint, preset, list(dict.fromkeys(cell.policy for cell in cells if preset in cell.presets))


def _about_verdicts(study: Study) -> str:
    """Say what the verdicts rest on."""
    lines = [f"Tests: {DIFFERENCE}" + (f"; of the sweep: {TREND}." if study.sweep is not None else ".")]
    if len(study.seeds) < 2:
        lines.append("With a single seed nothing is known of other seeds: all is undecided.")
    elif len(study.seeds) < 5:
        lines.append(
            f"With {len(study.seeds)} seeds only differences hold that are large beside those between the seeds."
        )
    return " ".join(lines)
