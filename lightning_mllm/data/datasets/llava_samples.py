"""The rows of a file in LLaVA's JSON format, each parsed when it is asked for."""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import ClassVar

import numpy as np

from lightning_mllm.data.datasets.json_rows import RowBytes, find_json_rows
from lightning_mllm.data.datasets.llava_rows import LlavaRow
from lightning_mllm.data.datasets.rows import FileRow, ImageRoot
from lightning_mllm.data.datasets.unread_llava_rows import UnreadLlavaRows
from lightning_mllm.data.loading.duplicates import PictureCollector, ShownPictures
from lightning_mllm.data.loading.splits import ItemGroups
from lightning_mllm.data.loading.stored import Column, StoredSamples
from lightning_mllm.errors import DataError
from lightning_mllm.progress import track
from lightning_mllm.types import Sample

logger = logging.getLogger(__name__)


class LlavaSamples(StoredSamples):
    """Samples of which only the places in the file are kept.

    Args:
        file: The file.
        root: Folder of the images.
        common: The folder below which pictures are named.
        columns: `start` and `length` of each row in bytes, its `number`, and `marks`, how often
            the number is written behind the id.
        fields: Further keys of a row that go along with its sample.

    Attributes:
        pictures: What the samples show, as long as it is known.
    """

    ids_are_unique: ClassVar[bool] = True

    pictures: ShownPictures | None = None

    def __init__(
        self,
        file: RowBytes,
        root: ImageRoot,
        common: str,
        columns: Mapping[str, Column],
        fields: Sequence[str] = (),
    ) -> None:
        where = {"root": str(root.path), "common": common}
        where |= {"fields": repr(fields)} if fields else {}
        super().__init__(columns, file.describe() | where)
        self._file, self._root, self._common, self._fields = file, root, common, fields

    def make(self, index: int) -> Sample:
        """Parse a row."""
        start, length, number, marks = (
            int(self.columns[name][index]) for name in ("start", "length", "number", "marks")
        )
        content = json.loads(self._file.read(start, length))
        row = FileRow(self._file.path, number)
        reader = LlavaRow(row, self._root, UnreadLlavaRows(), self._fields)
        sample = reader.make_sample(content)
        return name_llava_sample(sample, number, marks, self._common)

    def link(self) -> ItemGroups:
        """Return the groups of samples that share a picture or are partners."""
        shown = self.pictures or ShownPictures.of(self)
        self.pictures = None  # needed once
        return shown.link()


class LlavaFileReader:
    """Reads a file once, row by row, and keeps where the rows are.

    Args:
        file: The file.
        root: Folder of the images.
        common: The folder below which pictures are named.
        fields: Further keys of a row that go along with its sample.

    Attributes:
        errors: What is wrong with rows that can't be used.
    """

    def __init__(
        self, file: Path, root: ImageRoot, common: str, fields: Sequence[str] = ()
    ) -> None:
        self._file, self._root, self._common, self._fields = file, root, common, fields
        self.errors: list[DataError] = []
        self._unread = UnreadLlavaRows()
        self._renamed = 0

    def read(self, *, collects_pictures: bool) -> LlavaSamples:
        """Return the samples of the rows that can be used.

        Args:
            collects_pictures: Whether to note what the samples show, for `LlavaSamples.link`.

        Raises:
            MalformedRowsError: The file is no list of rows.
        """
        file = RowBytes(self._file)
        starts, lengths, numbers, marks = array("q"), array("q"), array("q"), array("B")
        pictures = PictureCollector()
        names: set[str] = set()
        for start, length, number, sample in self._find_samples():
            name = sample.id or str(number)
            times = next(k for k in count() if name + f"#{number}" * k not in names)
            names.add(name + f"#{number}" * times)
            self._renamed += times > 0 or not sample.id
            starts.append(start)
            lengths.append(length)
            numbers.append(number)
            marks.append(times)
            if collects_pictures:
                pictures.add(name_llava_sample(sample, number, times, self._common))
        columns: dict[str, Column] = {
            "start": np.array(starts, np.int64),
            "length": np.array(lengths, np.int32),
            "number": np.array(numbers, np.int32),
            "marks": np.array(marks, np.uint8),
        }
        samples = LlavaSamples(file, self._root, self._common, columns, self._fields)
        if collects_pictures:
            samples.pictures = pictures.build()
        return samples

    def warn(self) -> None:
        """Log what is not read, and how many rows are named by their number."""
        self._unread.warn(self._file)
        if self._renamed:
            logger.warning(
                "%d rows of %s have no id, or that of an earlier row: named by row number",
                self._renamed,
                self._file,
            )

    def _find_samples(self) -> Iterator[tuple[int, int, int, Sample]]:
        """Yield start, length and number of the rows that can be used, with their samples."""
        for row in track(find_json_rows(self._file), f"Rows of {self._file.name}"):
            where = FileRow(self._file, row.number)
            try:
                if isinstance(row.content, json.JSONDecodeError):
                    raise make_row_error(where, row.content, "malformed JSON")
                reader = LlavaRow(where, self._root, self._unread, self._fields)
                sample = reader.make_sample(row.content)
            except DataError as error:
                self.errors.append(error)
            else:
                yield row.start, row.length, row.number, sample


def name_llava_sample(sample: Sample, number: int, marks: int, common: str) -> Sample:
    """Return a sample with its name in the file, and the name of its picture.

    Args:
        sample: The sample as its row has it.
        number: The number of the row.
        marks: How often the number is written behind the id, to tell it from earlier rows.
        common: The folder below which pictures are named.
    """
    name = (sample.id or str(number)) + f"#{number}" * marks
    paths = [str(image).removeprefix(common).lstrip("/") for image in sample.images]
    return replace(sample, id=name, picture=", ".join(paths) or None)


def make_row_error(row: FileRow, error: json.JSONDecodeError, kind: str = "row") -> DataError:
    """Return the error of a row that is no JSON."""
    where = f"line {error.lineno}, column {error.colno}"
    problem = f"malformed JSON, {error.msg} ({where}). Rows must be objects with id, image and"
    return row.error(f"{problem} conversations", kind)
