"""Rows of single samples as CSV files, written batch by batch: a killed analysis can be continued.

Each batch is a file of its own, `rows-<process>-<number>.csv`, which is whole or not there. `merge`
makes one `rows.csv` of them, ordered by sample id. It is the same file however many processes there
were, and however often they were killed. `making.json` says which settings made the rows; rows made
with different settings are never added.

At most the rows of one batch are in memory as text.
"""

from __future__ import annotations

import csv
import dataclasses
import heapq
import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import DataError
from lightning_mllm.store.files import PARTIAL, replacing_file, write_text
from lightning_mllm.store.manifest import claim_folder_in_manifest
from lightning_mllm.types import Table

RowT = TypeVar("RowT")
Lines = list[str]  # the rows of a sample as lines of a CSV file

_MERGED = "rows.csv"
_PARTS = "rows-*-*.csv"
_CHUNK = 10_000  # rows that are parsed at once
_LONGEST_CELL = 2**31 - 1  # characters; by default the csv module refuses more than 131,072
_DTYPES: dict[type, Any] = {str: np.str_, int: np.int64, float: np.float64, bool: np.bool_}

csv.field_size_limit(_LONGEST_CELL)


class Rows(Generic[RowT]):
    """The rows of an analysis so far; without a folder they are kept in memory.

    Args:
        row_type: Dataclass of a row. Its first field is `sample_id`; all fields are str, int, float
            or bool.
        folder: Folder of the rows; rows that it has are kept, and all processes see it.
        making: The settings that decide the rows, as plain data.
        rank: Number of the process.

    Attributes:
        done: Ids of the samples that have their rows.

    Raises:
        ConfigError: The rows in the folder were created with different settings.
    """

    def __init__(
        self,
        row_type: type[RowT],
        folder: Path | None = None,
        making: Mapping[str, Any] | None = None,
        rank: int = 0,
    ) -> None:
        self._row_type, self._folder, self._rank = row_type, folder, rank
        self._columns = tuple(columns_of_rows(row_type))
        self._kept: dict[str, Lines] = {}  # without a folder: sample id -> rows
        self._next_part = 0
        self.done: set[str] = set()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            claim_folder_in_manifest(folder, {**(making or {}), "columns": self._columns})
            self.done.update(_find_parts(folder))
            for sample_id, _ in _read_samples(folder / _MERGED):
                self.done.add(sample_id)
            self._next_part = _count_parts(folder, rank)

    def append(self, samples: Mapping[str, Sequence[RowT]]) -> None:
        """Write all rows of the samples of a batch, at once.

        Args:
            samples: Sample id -> its rows.

        Raises:
            DataError: A cell has a line break, or a sample has no row.
        """
        lines = {sample_id: self._format(sample_id, rows) for sample_id, rows in samples.items()}
        if self._folder is None:
            self._kept |= lines
        elif lines:
            path = self._folder / f"rows-{self._rank}-{self._next_part:06}.csv"
            write_text(path, _format_line(self._columns) + "".join(map("".join, lines.values())))
            self._next_part += 1
        self.done.update(lines)

    def table(
        self, *, leave_out: Collection[str] = (), only: Collection[str] | None = None
    ) -> Table:
        """Return all rows, of all processes that see the folder, ordered by sample id.

        Args:
            leave_out: Columns that are not returned, such as long ones.
            only: Ids of the samples whose rows are returned; by default of all.
        """
        return _parse(self._row_type, self._lines(only), leave_out)

    def merge(self) -> Path | None:
        """Make `rows.csv` of the rows of all processes; one does it when all have finished."""
        if self._folder is None:
            return None
        path = self._folder / _MERGED
        with (
            replacing_file(path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            file.write(_format_line(self._columns))
            file.writelines(self._lines())
        for pattern in (_PARTS, f"{_PARTS}.*{PARTIAL}"):  # those that a kill has left, too
            for part in self._folder.glob(pattern):
                part.unlink()
        return path

    def _lines(self, only: Collection[str] | None = None) -> Iterator[str]:
        if self._folder is None:
            samples: Iterable[tuple[str, Lines]] = sorted(self._kept.items())
        else:
            samples = _read_in_order(self._folder)
        for sample_id, lines in samples:
            if only is None or sample_id in only:
                yield from lines

    def _format(self, sample_id: str, rows: Sequence[RowT]) -> Lines:
        if not rows:
            raise DataError(
                f"Sample {sample_id!r} has no row, so nothing would say that it was measured."
            )
        lines = []
        for row in rows:
            lines.append(_format_line(_format_cell(getattr(row, name)) for name in self._columns))
            if "\r" in lines[-1] or "\n" in lines[-1][:-1]:
                raise DataError(
                    f"The rows of sample {sample_id!r} have a line break within a cell. Take it "
                    "out of its id."
                )
        return lines


def columns_of_rows(row_type: type) -> dict[str, type]:
    """Return the columns of a row type and their types."""
    hints = get_type_hints(row_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(row_type)}


def read_rows(path: Path, row_type: type) -> Table:
    """Read a `rows.csv`.

    Raises:
        DataError: It has other columns.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header = next(csv.reader([next(file, "")]), [])
        if header != list(columns_of_rows(row_type)):
            raise DataError(
                f"{path} has the columns {', '.join(header)}, not those of {row_type.__name__}. "
                "Name the rows.csv of such an analysis, or run it again."
            )
        return _parse(row_type, (line for line in file if line.strip()))


def _parse(row_type: type, lines: Iterable[str], leave_out: Collection[str] = ()) -> Table:
    """Return the columns of CSV lines, but for some.

    They are parsed in chunks, since text takes many times the memory of numbers.
    """
    columns, reader = columns_of_rows(row_type), csv.reader(lines)
    kept = [name for name in columns if name not in leave_out]
    chunks = {name: [_to_array((), columns[name])] for name in kept}
    while rows := list(islice(reader, _CHUNK)):
        for name, cells in zip(columns, zip(*rows, strict=True), strict=True):
            if name in chunks:
                chunks[name].append(_to_array(cells, columns[name]))
    return {name: np.concatenate(chunks.pop(name)) for name in kept}  # frees its chunks


def _to_array(cells: Sequence[str], kind: type) -> NDArray[Any]:
    if kind is float:
        return np.array([float(cell) if cell else math.nan for cell in cells], dtype=np.float64)
    if kind is bool:
        return np.array([cell == "True" for cell in cells], dtype=np.bool_)
    return np.array([kind(cell) for cell in cells], dtype=_DTYPES[kind])


def _format_cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _format_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _count_parts(folder: Path, rank: int) -> int:
    """Return a number that no part of a process has yet, nor any later one."""
    numbers = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"rows-{rank}-*.csv")]
    return max(numbers, default=-1) + 1


def _find_parts(folder: Path) -> dict[str, Path]:
    """Return the part that each sample is in; of a sample that is in two the first."""
    parts: dict[str, Path] = {}
    for path in sorted(folder.glob(_PARTS)):
        for sample_id, _ in _read_samples(path):
            parts.setdefault(sample_id, path)
    return parts


def _read_in_order(folder: Path) -> Iterator[tuple[str, Lines]]:
    """Yield sample id and rows, by id: those that are merged together with those that are not."""
    every = heapq.merge(
        _read_samples(folder / _MERGED), _read_parts(_find_parts(folder)), key=itemgetter(0)
    )
    for _, same in groupby(every, key=itemgetter(0)):
        yield next(same)  # what is merged comes before a part that was not removed


def _read_parts(parts: Mapping[str, Path]) -> Iterator[tuple[str, Lines]]:
    """Yield sample id and rows, by id.

    Samples of one batch often follow each other, so the file read last stays in memory.
    """
    opened: Path | None = None
    samples: dict[str, Lines] = {}
    for sample_id, path in sorted(parts.items()):
        if path != opened:
            opened, samples = path, dict(_read_samples(path))
        yield sample_id, samples[sample_id]


def _read_samples(path: Path) -> Iterator[tuple[str, Lines]]:
    """Yield sample id and rows of each sample of a file; nothing if there is no such file."""
    if path.is_file():
        with path.open(encoding="utf-8", newline="\n") as file:
            next(file, None)  # the header
            for sample_id, lines in groupby(file, key=_read_id):
                yield sample_id, list(lines)


def _read_id(line: str) -> str:
    if line.startswith('"'):
        return next(csv.reader([line]))[0]
    return line.rstrip("\n").partition(",")[0]  # the rest may be long
