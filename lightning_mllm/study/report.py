"""Writes what a study found: `results.csv`, tables, verdicts and figures, `report.md`, and a W&B run."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from lightning_mllm.study.comparison import Comparison, compare
from lightning_mllm.study.config import ZERO_SHOT, Study
from lightning_mllm.study.grid import rates_of_sweep
from lightning_mllm.study.marker import CellFolder, State
from lightning_mllm.study.results import COLUMNS, Result, collect
from lightning_mllm.study.tables import (
    TABLE_COLUMNS,
    VERDICT_COLUMNS,
    Entry,
    as_markdown,
    table_1,
    table_2,
    verdict_row,
    verdicts_as_markdown,
)
from lightning_mllm.study.verdict import verdicts
from lightning_mllm.tracking.files import write_rows
from lightning_mllm.tracking.log import finish, log_image, log_table, make_loggers
from lightning_mllm.tracking.study_figures import Slope, epoch_plot, slope_plot

_RICHNESS_LABEL = "Richness: macro-F1 of the probe"


def write_report(study: Study, folders: Sequence[CellFolder]) -> Path | None:
    """Write the results of the finished cells.

    Args:
        study: The study.
        folders: All cells of the grid.

    Returns:
        `report.md`; None while no cell is finished.

    Raises:
        DataError: A file of a finished cell is missing.
    """
    done = [folder for folder in folders if folder.state is State.DONE]
    if not done:
        return None
    results = collect(study, done)
    write_rows(study.folder / "results.csv", COLUMNS, (result.cells() for result in results))
    comparisons = compare(study, done)
    sections = [
        f"# {study.name}\n\n{len(done)} of {len(folders)} cells are finished. "
        "Brackets: 95 % intervals over seeds and samples."
    ]
    for number, table in enumerate((table_1, table_2), 1):
        entries: list[Entry] = []
        for checkpoint, preset, policies in _models(study, done):
            those = [each for each in comparisons if each.checkpoint == checkpoint]
            of_preset = [entry for each in those for entry in table(each, preset, policies)]
            sections.append(f"## Table {number}: {checkpoint}, {preset}\n\n{as_markdown(of_preset)}")
            entries += of_preset
        write_rows(study.folder / f"table{number}.csv", TABLE_COLUMNS, (entry.cells() for entry in entries))
    found = verdicts(comparisons, list(study.presets), rates_of_sweep(study))
    write_rows(study.folder / "verdict.csv", VERDICT_COLUMNS, (verdict_row(verdict) for verdict in found))
    if found:
        sections.append(f"## Verdicts\n\n{verdicts_as_markdown(found)}")
    pictures = _draw(study, comparisons, results)
    sections += [f"![{path.stem}]({path.relative_to(study.folder).as_posix()})" for path in pictures]
    return _write_text(study.folder / "report.md", "\n\n".join(sections) + "\n")


def log_summary(study: Study) -> None:
    """Log tables and figures as one W&B run in the group of the study."""
    loggers = make_loggers(
        study.folder / "summary",
        name=f"{study.name}-summary",
        group=study.name,
        mode=study.wandb,
        project=study.project,
    )
    for name in ("table1", "table2", "verdict"):
        with (study.folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
        log_table(loggers, name, columns, rows)
    for path in sorted((study.folder / "figures").glob("*.png")):
        log_image(loggers, f"figures/{path.stem}", path)
    finish(loggers)


def _models(study: Study, done: Sequence[CellFolder]) -> Iterator[tuple[str, str, list[str]]]:
    """Give checkpoint, preset and policies of each table."""
    for checkpoint in study.checkpoints:
        cells = [folder.cell for folder in done if folder.cell.checkpoint == checkpoint]
        for preset in dict.fromkeys(cell.preset for cell in cells if cell.trains):
            yield checkpoint, preset, list(dict.fromkeys(cell.policy for cell in cells if cell.preset == preset))


def _draw(study: Study, comparisons: Sequence[Comparison], results: Sequence[Result]) -> list[Path]:
    """Draw the figures that there are numbers for, each with its numbers beside it."""
    folder = study.folder / "figures"
    pictures = []
    if slopes := list(_slopes(comparisons)):
        rows = [[s.panel, s.group, s.kind, *s.before, *s.after] for s in slopes]
        columns = ["panel", "domain", "policy", "richness_before", "score_before", "richness_after", "score_after"]
        write_rows(folder / "slopes.csv", columns, rows)
        pictures.append(slope_plot(slopes, folder / "slopes.png", xlabel=_RICHNESS_LABEL, ylabel="MLLM macro-F1"))
    if (richness := study.richness) is not None:
        probe = f"val/probe/{richness.point}/{richness.probe}/macro_f1"
        pictures += _curves(results, probe, folder / "richness.png", f"{_RICHNESS_LABEL} (validation)")
        drift = f"drift/{richness.point}/cka"
        pictures += _curves(results, drift, folder / "drift.png", "Linear CKA with the features before training")
    return pictures


def _slopes(comparisons: Sequence[Comparison]) -> Iterator[Slope]:
    for each in comparisons:
        for who in each.scores:
            if who.kind != "richness" or who.policy == ZERO_SHOT:
                continue
            points = []
            for policy in (ZERO_SHOT, who.policy):
                richness = each.get("richness", policy, who.preset, "macro_f1")
                score = each.get("model", policy, who.preset, "macro_f1")
                if richness is not None and score is not None:
                    points.append((richness.mean, score.mean))
            if len(points) == 2:
                yield Slope(f"{each.checkpoint}, {who.preset}", each.domain, who.policy, points[0], points[1])


def _curves(results: Sequence[Result], measure: str, output: Path, ylabel: str) -> list[Path]:
    """Draw a measure over the epochs, averaged over the seeds."""
    values: dict[tuple[str, str, int], list[float]] = {}
    for result in results:
        if result.measure == measure and result.value is not None and result.epoch is not None and result.preset:
            line = (f"{result.checkpoint}, {result.domain}", f"{result.preset}, {result.policy}", result.epoch)
            values.setdefault(line, []).append(result.value)
    if not values:
        return []
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for (panel, label, epoch), of_seeds in values.items():
        curves.setdefault(panel, {}).setdefault(label, {})[epoch] = fmean(of_seeds)
    rows = [[*line, fmean(of_seeds), len(of_seeds)] for line, of_seeds in values.items()]
    write_rows(output.with_suffix(".csv"), ["panel", "line", "epoch", "mean", "seeds"], rows)
    return [epoch_plot(curves, output, ylabel=ylabel)]


def _write_text(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
