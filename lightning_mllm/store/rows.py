"""Tidy rows of single samples, written as they come: what is killed goes on where it was.

While an analysis runs, each process appends to a file of its own, `rows-<process>.csv`. Behind the rows of a sample
there is an empty line, which readers of CSV skip; a sample without it was cut off, and is measured anew. `merge` makes
`rows.csv` of them, by sample id: it is the same however many processes there were, and however often they were killed.
`making.json` says how the rows were made, and nothing that was made otherwise is added to them.

Files are gone through, never read whole: what is kept of a sample is where its rows are, not what they say.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Table

RowT = TypeVar("RowT")

_MERGED = "rows.csv"
_END = b"\n"  # behind a sample
_CHUNK = 10_000  # rows that are kept as text at once
_DTYPES: dict[type, Any] = {str: np.str_, int: np.int64, float: np.float64, bool: np.bool_}


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where the rows of a sample are: bytes of a file."""

    path: Path
    start: int
    size: int


class Rows(Generic[RowT]):
    """The rows of an analysis so far; without a folder in memory.

    Args:
        row_type: Dataclass of a row: its first field is `sample_id`, all are str, int, float or bool.
        folder: Where the rows are written, beside those that are there; all processes see it.
        making: What decides the rows: plain data.
        share: Number of the process.

    Attributes:
        done: Ids of the samples that have their rows.

    Raises:
        ConfigError: The rows in the folder were made otherwise.
    """

    def __init__(
        self,
        row_type: type[RowT],
        folder: Path | None = None,
        making: Mapping[str, Any] | None = None,
        share: int = 0,
    ) -> None:
        self._row_type, self._folder, self._share = row_type, folder, share
        self._columns = tuple(columns_of(row_type))
        self._kept: dict[
            str, str
        ] = {}  # without a folder: sample id -> its rows as they would be in the file
        self.done: set[str] = set()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            check_making(folder, {**(making or {}), "columns": self._columns})
            self.done.update(_places(folder))
            _cut(folder / self._own_file)

    def append(self, sample_id: str, rows: Sequence[RowT]) -> None:
        """Write all rows of a sample, at once.

        Raises:
            DataError: A cell has a line break, or the sample has no row.
        """
        if not rows:
            raise DataError(
                f"Sample {sample_id!r} has no row, so nothing would say that it was measured."
            )
        text = self._text(rows)
        if "\r" in text or text.count("\n") != len(rows):
            raise DataError(
                f"The rows of sample {sample_id!r} have a line break within a cell. Take it out of its id."
            )
        if self._folder is None:
            self._kept[sample_id] = text
        else:
            _append(
                self._folder / self._own_file,
                text.encode() + _END,
                header=_line(self._columns).encode(),
            )
        self.done.add(sample_id)

    def table(self) -> Table:
        """Return all rows, of all processes that see the folder, ordered by sample id."""
        return _table(self._row_type, self._lines())

    def merge(self) -> Path | None:
        """Make `rows.csv` of what all processes have written; one of them does, when all have finished."""
        if self._folder is None:
            return None
        path, part = self._folder / _MERGED, self._folder / f"{_MERGED}.part"
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(_line(self._columns))
            file.writelines(self._lines())
        os.replace(part, path)
        for shard in _shards(self._folder):
            shard.unlink()
        return path

    @property
    def _own_file(self) -> str:
        return f"rows-{self._share}.csv"

    def _lines(self) -> Iterator[str]:
        texts: Iterator[str]
        if self._folder is None:
            texts = (self._kept[sample_id] for sample_id in sorted(self._kept))
        else:
            texts = _texts(_places(self._folder))
        return (line for text in texts for line in _split(text))

    def _text(self, rows: Sequence[RowT]) -> str:
        return "".join(_line([_cell(getattr(row, name)) for name in self._columns]) for row in rows)


def columns_of(row_type: type) -> dict[str, type]:
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
        if header != list(columns_of(row_type)):
            raise DataError(
                f"{path} has the columns {', '.join(header)}, not those of a {row_type.__name__}."
            )
        return _table(row_type, (line for line in file if line.strip()))


def _table(row_type: type, lines: Iterable[str]) -> Table:
    """Parse rows; chunk by chunk, since text takes many times the room of numbers."""
    columns, reader = columns_of(row_type), csv.reader(lines)
    parts: list[list[NDArray[Any]]] = [[_array((), kind)] for kind in columns.values()]
    while chunk := list(islice(reader, _CHUNK)):
        for part, cells, kind in zip(
            parts, zip(*chunk, strict=True), columns.values(), strict=True
        ):
            part.append(_array(cells, kind))
    return {name: np.concatenate(parts.pop(0)) for name in columns}  # no column twice


def _array(cells: Sequence[str], kind: type) -> NDArray[Any]:
    if kind is float:
        return np.array([float(cell) if cell else math.nan for cell in cells], dtype=np.float64)
    if kind is bool:
        return np.array([cell == "True" for cell in cells], dtype=np.bool_)
    return np.array([kind(cell) for cell in cells], dtype=_DTYPES[kind])


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("rows-*.csv"))


def _places(folder: Path) -> dict[str, _Place]:
    """Return sample id -> where its rows are, of samples that are whole; of one that is there twice the first."""
    places: dict[str, _Place] = {}
    for path in (folder / _MERGED, *_shards(folder)):
        for sample_id, place in _places_in(path):
            places.setdefault(sample_id, place)
    return places


def _places_in(path: Path) -> Iterator[tuple[str, _Place]]:
    """Yield the samples of a file, if it is there, and where they are; neither its header nor what was cut off."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = len(file.readline())
        for sample_id, size in _merged(file) if path.name == _MERGED else _appended(file):
            yield sample_id, _Place(path, start, size)
            start += size


def _merged(lines: Iterable[bytes]) -> Iterator[tuple[str, int]]:
    """Yield sample id and bytes of lines that have the same id."""
    for sample_id, own in groupby(lines, key=_id_of):
        yield sample_id, sum(map(len, own))


def _appended(lines: Iterable[bytes]) -> Iterator[tuple[str, int]]:
    """Yield sample id and bytes of lines that an empty line ends."""
    first, size = b"", 0
    for line in lines:
        first, size = first or line, size + len(line)
        if line == _END:
            yield _id_of(first), size
            first, size = b"", 0


def _id_of(line: bytes) -> str:
    return next(csv.reader([line.decode()]))[0]


def _texts(places: Mapping[str, _Place]) -> Iterator[str]:
    """Yield the rows of one sample after the other, by id."""
    with ExitStack() as opened:
        files = {
            path: opened.enter_context(path.open("rb"))
            for path in {place.path for place in places.values()}
        }
        for _, place in sorted(places.items(), key=itemgetter(0)):
            files[place.path].seek(place.start)
            yield files[place.path].read(place.size).decode()


def _split(text: str) -> list[str]:
    """Return the rows, with their ends; `str.splitlines` also splits at characters that a cell may have."""
    return [line + "\n" for line in text.split("\n") if line]


def _cut(path: Path) -> None:
    """Take what was cut off from the end of a file."""
    if path.is_file():
        whole = max((place.start + place.size for _, place in _places_in(path)), default=0)
        os.truncate(path, whole)


def _append(path: Path, content: bytes, header: bytes) -> None:
    with path.open("ab") as file:
        file.write(content if file.tell() else header + content)


def check_making(folder: Path, making: Mapping[str, Any]) -> None:
    """Refuse rows that were made otherwise; note how those to come are made."""
    path, now = folder / "making.json", json.loads(json.dumps(making, default=str))
    if path.is_file():
        then = json.loads(path.read_text(encoding="utf-8"))
        if changed := list(_differences(then, now)):
            raise ConfigError(
                f"The rows in {folder} were made otherwise than now: {'; '.join(changed)}. Go on with the settings and "
                "the weights that they were made with, or begin anew in another folder."
            )
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif then != now:
        yield f"{name} was {then!r}, is {now!r}"
