"""Prints the main numbers of analyses, and where their files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.progress import console

_MOST_ROWS = 20
_WIDTH = 80  # columns of a terminal


def print_headlines(results: Sequence[AnalysisResult], folder: Path | None) -> None:
    """Print a small table per result.

    Args:
        results: The results of a run.
        folder: Where their files are; None for a trial that wrote none.
    """
    for result in results:
        if not result.n_samples:
            continue
        numbers = result.main_numbers()
        console.print()
        console.print(Text.assemble((result.name, "bold"), f" · {result.n_samples:,} samples"))
        console.print(Padding(Text(numbers.caption, "dim"), (0, 2)), width=_WIDTH)
        if numbers.rows:
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
            for number, column in enumerate(numbers.columns):
                options = {"justify": "right", "no_wrap": True} if number else {"overflow": "fold"}
                table.add_column(column, **options)
            for row in numbers.rows[:_MOST_ROWS]:
                table.add_row(*map(Text, row))
            console.print(Padding(table, (0, 2), expand=False), width=_WIDTH)
        if (more := len(numbers.rows) - _MOST_ROWS) > 0:
            console.print(f"  and {more} more in {result.name}/summary.csv")
    if folder is not None:
        console.print(f"\nResults are in {folder}", soft_wrap=True)
