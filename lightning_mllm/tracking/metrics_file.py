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

from lightning_mllm.store.files import write_rows


class MetricsFile(Logger):
    """Writes `metrics.csv`: one row per `log_metrics`, one column per metric, empty where a row has no value.

    Its `step` is the number of optimiser steps taken, as in all files of a run.

    A run that is resumed goes on at the end of the file. Steps between its checkpoint and the end of the earlier
    process are then there twice; the later row counts.

    Args:
        run_dir: Folder of the run.
        rows_per_write: Rows are kept in memory until there are so many, or until `save`.
    """

    def __init__(self, run_dir: Path, rows_per_write: int = 20) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self._rows_per_write = rows_per_write
        self._rows: list[dict[str, Any]] = []

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
        values = {
            key: value.item() if isinstance(value, Tensor) else value
            for key, value in metrics.items()
        }
        values.update(
            {key: int(values[key]) for key in ("epoch",) if key in values}
        )  # Lightning makes it a float
        self._rows.append({"step": step, **values})
        if len(self._rows) >= self._rows_per_write:
            self.save()

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: the resolved config of the run is a file of its own."""

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that are not in the file yet; a file with too few columns is replaced in one step."""
        if not self._rows:
            return
        columns = self._columns()
        wanted = list(dict.fromkeys([*columns, *(key for row in self._rows for key in row)]))
        if wanted == columns:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerows(self._rows)
        else:
            self._replace(wanted)
        self._rows.clear()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    def _columns(self) -> list[str]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return next(csv.reader(file), [])

    def _replace(self, columns: list[str]) -> None:
        earlier: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                earlier = list(csv.DictReader(file))
        write_rows(
            self.path,
            columns,
            [[row.get(key) for key in columns] for row in [*earlier, *self._rows]],
        )
