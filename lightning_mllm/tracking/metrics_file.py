"""A run's numbers as one CSV file, which is always there."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_mllm.store.files import write_csv_file


class MetricsFile(Logger):
    """Writes `metrics.csv`: a row per `log_metrics`, a column per metric.

    A cell is empty where its row has no value. The column `step` is the number of optimiser steps
    taken, as in all files of a run. Each logger begins a new file.

    Args:
        run_dir: Folder of the run.
        rows_per_write: Rows are kept in memory until there are this many, or until `save`.

    Attributes:
        count: Number of rows so far.
    """

    def __init__(self, run_dir: Path, rows_per_write: int = 20) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self._rows_per_write = rows_per_write
        self._columns: list[str] = []  # of the file
        self._rows: list[dict[str, Any]] = []  # that are not in the file yet
        self._writes_next = False
        self.count = 0  # of all rows

    @property
    def name(self) -> str:
        """Empty: nothing is nested below the folder of the run."""
        return ""

    @property
    def version(self) -> str:
        """Empty: nothing is nested below the folder of the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the run."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Add a row."""
        row: dict[str, Any] = {"step": step}
        for key, value in metrics.items():
            row[key] = value.item() if isinstance(value, Tensor) else value
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])  # Lightning makes it a float
        self._rows.append(row)
        self.count += 1
        if self._writes_next or len(self._rows) >= self._rows_per_write:
            self._writes_next = False
            self.save()

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: the resolved config of the run is a file of its own."""

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are not in the file yet."""
        if not self._rows:
            return
        columns = dict.fromkeys(self._columns)
        for row in self._rows:
            columns |= dict.fromkeys(row)
        if list(columns) == self._columns:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerows(self._rows)
        else:
            self._replace(list(columns))
        self._rows.clear()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    @rank_zero_only
    def save_with_step(self) -> None:
        """Write what is left, and the next row at once: a checkpoint is written before its row."""
        self.save()
        self._writes_next = True

    @rank_zero_only
    def begin_with(self, earlier: Path, count: int, step: int) -> None:
        """Begin with the rows that another run had when it wrote a checkpoint.

        Args:
            earlier: The folder of the run; without a `metrics.csv` in it, nothing is done, and
                neither in this file's own folder.
            count: Number of rows that it had.
            step: Step of the checkpoint. The row of this step's training may be the next one.
        """
        path = earlier / self.path.name
        if not path.is_file() or path.resolve() == self.path.resolve():
            return
        with path.open(newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        kept = rows[:count]
        for row in rows[count:]:
            if row["step"] != str(step) or not any(map(row.get, filter(_is_training, row))):
                break
            kept.append(row)
        self._rows = [*kept, *self._rows]
        self.count += len(kept)
        self.save()

    def clear(self) -> None:
        """Forget all rows: the file is no longer there."""
        self._columns, self._rows, self.count, self._writes_next = [], [], 0, False

    def _replace(self, columns: list[str]) -> None:
        """Replace the file by one with more columns and the new rows."""
        rows: list[dict[str, Any]] = []
        if self._columns:
            with self.path.open(newline="") as file:
                rows += csv.DictReader(file)
        cells = (map(row.get, columns) for row in [*rows, *self._rows])
        write_csv_file(self.path, columns, cells)
        self._columns = columns


def _is_training(column: str) -> bool:
    return column.startswith("train/")
