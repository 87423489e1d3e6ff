"""The Markdown that the reports of all studies are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_mllm.study.engine.cell_folder import AnyFolder, unfinished_cell_folders


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [_line(columns), _line(["---"] * len(columns))]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def pictures_as_markdown(pictures: Iterable[Path], folder: Path) -> list[str]:
    """Return the link to the PNG of each picture, from a file in a folder."""
    links = []
    for path in pictures:
        target = path.relative_to(folder).with_suffix(".png").as_posix()
        links.append(f"![{path.stem}]({target})")
    return links


def unfinished_as_markdown(folders: Iterable[AnyFolder]) -> list[str]:
    """Return the section about the cells that are not finished; empty where all are."""
    lines = [f"- {folder.cell.id}: {folder.state}" for folder in unfinished_cell_folders(folders)]
    return ["\n".join(["## Cells that are not finished\n", *lines])] if lines else []
