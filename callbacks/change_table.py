"""The table at the end of a run: what the projection changes before the training and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lightning_mllm.callbacks.probe_table import format_row_at_step
from lightning_mllm.probing.change.measures import OVERLAP


def draw_change_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return each measure before the training and at the last step.

    Args:
        rows: The rows of `projection_change.csv`.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        name = f"unexplained, {row['of']} patches"
        if row["measure"] == OVERLAP:
            name = f"overlap of {row['of']} (chance {row['chance']:.3f})"
        split = "validation" if row["stage"] == "val" else "test"
        groups.setdefault((name, split), []).append(row)
    caption = "brackets: 95 % intervals over pictures"
    table = Table("projection changes", box=SIMPLE_HEAD, pad_edge=False, caption=caption)
    table.columns[0].overflow = "fold"
    for column in ("split", "N", "before", "last"):
        table.add_column(column, justify="right")
    for (name, split), own in sorted(groups.items(), key=lambda each: each[0][1] == "test"):
        last = max(row["step"] for row in own)
        cells = (format_row_at_step(own, 0, "value"), format_row_at_step(own, last, "value"))
        table.add_row(Text(name), split, str(own[-1]["n"]), cells[0], cells[1] if last else "")
    return table
