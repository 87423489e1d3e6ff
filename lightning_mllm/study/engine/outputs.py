"""Finds and reads the files that the runs of a finished cell wrote."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from lightning_mllm.errors import DataError
from lightning_mllm.study.engine.cell_folder import AnyFolder

Row = Mapping[str, str]


def evaluation_output(folder: AnyFolder) -> Path:
    """Return the folder of the cell's test, in its last run.

    Raises:
        DataError: There is none with scores.
    """
    run = last_run_output(folder)
    found = [path.parent for path in run.glob("evaluation/test-step*/scores.json")]
    if not found:
        raise DataError(
            f"{run}/evaluation/test-step*/scores.json is missing.{missing_output_way_out(folder)}"
        )
    return max(found, key=lambda path: int(path.name.rpartition("step")[2]))


def last_run_output(folder: AnyFolder) -> Path:
    """Return the folder of the cell's last run, or that of the cell without any run."""
    runs = folder.runs()
    return runs[-1] if runs else folder.path


def read_output_table(path: Path, folder: AnyFolder) -> list[Row]:
    """Return the rows of a CSV file of a cell.

    Raises:
        DataError: The file is missing.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing.{missing_output_way_out(folder)}")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def missing_output_way_out(folder: AnyFolder) -> str:
    """Return how to go on where a cell lacks a file."""
    return (
        " The study needs it of each cell. Keep the callback that writes it in the study's config "
        f"files; if the file was removed by hand, delete {folder.path} and run the study again."
    )


def describe_output_number(
    name: str, value: float | None, low: float | None, high: float | None
) -> str:
    """Return a cell's number in a few words, with its interval if there is one."""
    if value is None:
        return f"{name} not defined"
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{name} {value:.2f}{interval}"
