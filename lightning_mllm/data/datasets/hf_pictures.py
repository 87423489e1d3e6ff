"""Pictures that lie in a table: each is looked at once, what is found is kept in the user's cache.

The cache is found by the table's files, their sizes and times. It is mapped into memory, so that
all processes share it.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from filelock import FileLock
from numpy.typing import NDArray

from lightning_mllm.data.datasets.hf_columns import pick_field, split_column
from lightning_mllm.data.images.files import inspect_image_file
from lightning_mllm.data.loading.check_manifest import check_manifest_folder, warn_of_cache
from lightning_mllm.progress import track
from lightning_mllm.store.files import replacing_file, write_text
from lightning_mllm.store.manifest import manifest_digest

_FORMAT = 1  # of the files in the cache
PICTURE = np.dtype(
    [("row", "<i8"), ("width", "<i4"), ("height", "<i4"), ("high", "<u8"), ("low", "<u8")]
)

_PENDING = 4096  # entries that are held as objects, which take more memory than an array
_CHUNK = 32  # rows that are read at once; their pictures are in memory

TableCell = bytes | str  # a picture, or the path of one


class TableFacts(NamedTuple):
    """What is known of a table once each row was looked at.

    Attributes:
        pictures: (pictures,) with row, width, height and 128 bits that stand for the bytes; of a
            picture that can't be read the width is 0, of one that is a file -1.
        content: A text that tables of equal content have in common.
        repeated: The rows with the id of an earlier row, ascending.
    """

    pictures: NDArray[np.void]
    content: str
    repeated: NDArray[np.int64]

    def list_row(self, row: int) -> NDArray[np.void]:
        """Return the pictures of a row."""
        rows: Any = self.pictures["row"]
        start = end = bisect_left(rows, row)
        while end < len(rows) and rows[end] == row:
            end += 1
        return self.pictures[start:end]


@dataclass(frozen=True)
class HFTable:
    """The rows of one split.

    Attributes:
        dataset: The memory-mapped `datasets.Dataset`.
        name: What messages call it: the dataset and its split.
        texts: Columns that are read with each row.
        image: The column of pictures; None without pictures.
        id: The column that names rows; None where they have numbers only.
    """

    dataset: Any = field(repr=False)
    name: str
    texts: tuple[str, ...]
    image: str | None
    id: str | None = None

    def __len__(self) -> int:
        return int(self.dataset.num_rows)

    def name_cell(self, row: int, column: str) -> str:
        """Return what messages call a cell; rows count from 0, as `datasets` does."""
        return f"{self.name}, row {row}, column {column!r}"

    def read_pictures(self, row: int) -> list[TableCell]:
        """Return the pictures of a row, as they are stored."""
        if self.image is None:
            return []
        column, fields = self._image_field
        return _list_cells(pick_field(self.dataset.data.table.column(column)[row].as_py(), fields))

    def read_texts(self, row: int) -> dict[str, Any]:
        """Return the columns that are read with each row."""
        return self._pick_texts(self._rows[row] if self.texts else {})

    def read_rows(self) -> Iterator[tuple[int, dict[str, Any], list[TableCell]]]:
        """Yield number, texts and pictures of each row; many at once are read faster than one."""
        for start in range(0, len(self), _CHUNK):
            end = min(start + _CHUNK, len(self))
            texts = self._rows[start:end] if self.texts else {}
            stored: list[Any] = [None] * (end - start)
            if self.image is not None:
                column, fields = self._image_field
                stored = self.dataset.data.table.column(column).slice(start, _CHUNK).to_pylist()
                stored = [pick_field(value, fields) for value in stored]
            for number, row in enumerate(range(start, end)):
                values = {name: column[number] for name, column in texts.items()}
                yield row, self._pick_texts(values), _list_cells(stored[number])

    def read_column(self, name: str) -> list[Any]:
        """Return a column, or a field within it, of all rows."""
        column, fields = split_column(name, self.dataset.column_names)
        values = self.dataset.select_columns([column])[:][column]
        return [pick_field(value, fields) for value in values]

    def _pick_texts(self, values: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name in self.texts:
            column, fields = split_column(name, values)
            found[name] = pick_field(values[column], fields)
        return found

    @cached_property
    def _image_field(self) -> tuple[str, list[str]]:
        return split_column(str(self.image), self.dataset.column_names)

    @cached_property
    def _rows(self) -> Any:
        names = self.dataset.column_names
        tops = {split_column(name, names)[0]: None for name in self.texts}
        return self.dataset.select_columns(list(tops))


def find_table_facts(table: HFTable) -> TableFacts:
    """Return what is known of a table, from the cache or after one look at each row.

    One process looks, others wait for it, unless the cache can't be written.
    """
    path = check_manifest_folder() / "tables" / f"{_identify(table)}.npy"
    with ExitStack() as held:
        if not path.is_file():
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(path.with_suffix(".lock")))
        if not path.is_file():
            facts = look_at_table(table)
            try:
                _write_facts(path, facts)
            except OSError as error:
                warn_of_cache(path.parent, error)
                return facts
    kept = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    repeated = np.array(kept["repeated"], np.int64)
    # as a plain array, which takes a fifth of the time to read from
    pictures = np.load(path, mmap_mode="r").view(np.ndarray)
    return TableFacts(pictures, kept["content"], repeated)


def look_at_table(table: HFTable) -> TableFacts:
    """Look at each row of a table: the size and soundness of its pictures, and its content."""
    from xxhash import xxh3_64, xxh3_128  # noqa: PLC0415 - comes with `datasets`

    content = xxh3_128(repr((table.texts, table.image)).encode())
    ids = array("Q")
    found: list[NDArray[np.void]] = []
    pending: list[tuple[int, int, int, int, int]] = []
    for row, texts, cells in track(table.read_rows(), f"Rows of {table.name}", len(table)):
        content.update(repr(texts).encode("utf-8", "surrogatepass"))
        name = name_row(texts.get(table.id or "")) or f"row {row}"
        ids.append(xxh3_64(name.encode("utf-8", "surrogatepass")).intdigest())
        for cell in cells:
            stored = cell if isinstance(cell, bytes) else cell.encode("utf-8", "surrogatepass")
            digest = xxh3_128(stored)
            content.update(digest.digest())
            high, low = divmod(digest.intdigest(), 1 << 64)
            pending.append((row, *_measure(cell), high, low))
        if len(pending) >= _PENDING:
            found.append(np.array(pending, PICTURE))
            pending.clear()
    found.append(np.array(pending, PICTURE))
    _, first = np.unique(np.frombuffer(ids, np.uint64), return_index=True)
    repeated = np.setdiff1d(np.arange(len(ids)), first, assume_unique=True)
    return TableFacts(np.concatenate(found), content.hexdigest(), repeated)


def name_content(picture: np.void) -> str:
    """Return a text that stands for the bytes of a picture."""
    return f"{int(picture['high']):016x}{int(picture['low']):016x}"


def name_row(value: object) -> str:
    """Return the name that a row has by its id; empty if it has none."""
    return "" if value is None else str(value)


def _measure(cell: TableCell) -> tuple[int, int]:
    """Return the size of a stored picture; zeros if it can't be read, less for a file."""
    if isinstance(cell, str):
        return -1, -1
    found = inspect_image_file(cell)
    return (0, 0) if isinstance(found, str) else found[0]


def _list_cells(value: Any) -> list[TableCell]:
    """Return the pictures of a cell; the type Image stores bytes, or else a path."""
    cells = []
    for cell in value if isinstance(value, list) else [value]:
        if isinstance(cell, dict):
            cell = cell["path"] if cell["bytes"] is None else cell["bytes"]  # noqa: PLW2901
        if cell is not None:
            cells.append(cell)
    return cells


def _identify(table: HFTable) -> str:
    """Return a digest of what a table's content depends on, without reading it."""
    parts = [str(_FORMAT), PIL.__version__, table.dataset._fingerprint, str(len(table))]
    parts += [*table.texts, table.image or "", table.id or ""]
    for file in table.dataset.cache_files:
        status = Path(file["filename"]).stat()
        parts.append(f"{file['filename']} {status.st_size} {status.st_mtime_ns}")
    return manifest_digest(f"{part}\0" for part in parts)


def _write_facts(path: Path, facts: TableFacts) -> None:
    """Keep what is known; the array is written last, since it says that all is there."""
    kept = {"content": facts.content, "repeated": facts.repeated.tolist()}
    write_text(path.with_suffix(".json"), json.dumps(kept))
    with replacing_file(path) as part, part.open("wb") as file:
        np.save(file, facts.pictures)
