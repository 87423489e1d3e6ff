"""From the rows of a table to samples, each made when it is asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_mllm.data.datasets.hf_columns import HFLayout
from lightning_mllm.data.datasets.hf_pictures import HFTable, TableFacts, name_content, name_row
from lightning_mllm.data.datasets.llava_rows import PLACEHOLDER, LlavaRow
from lightning_mllm.data.datasets.rows import FileRow
from lightning_mllm.data.datasets.sample_fields import Fields, read_sample_fields
from lightning_mllm.data.datasets.unread_llava_rows import UnreadLlavaRows
from lightning_mllm.data.images.files import inspect_image_file, open_image_file
from lightning_mllm.data.loading.bad_rows import IMAGE_FILE
from lightning_mllm.data.loading.stored import StoredSamples
from lightning_mllm.data.text.labels import normalise_label
from lightning_mllm.data.text.turns import join_turn_around_images
from lightning_mllm.errors import DataError
from lightning_mllm.types import LazyImage, Sample, Turn

_CONTENT = "conversations"  # the key by which a conversation's reader knows it


@dataclass(frozen=True)
class TableRow(FileRow):
    """One row of a table; rows count from 0, as `datasets` does.

    Attributes:
        columns: What readers call a field -> the name of the column.
    """

    columns: tuple[tuple[str, str], ...] = ()

    def error(self, problem: str, kind: str = "row", field: str = "") -> DataError:
        """Return the error that names dataset, split, row and column."""
        for role, column in self.columns:
            if field.partition("[")[0] == role:
                field = column + field.removeprefix(role)
        where = f", column {field!r}" if field else ""
        return DataError(f"{self.file}, row {self.number}{where}: {problem}.", kind)


@dataclass(frozen=True)
class HFRowReader:
    """Makes the samples of a table.

    Attributes:
        table: The rows.
        layout: How they are read.
        facts: What is known of them.
        root: The folder that paths of pictures are relative to, and may not leave.
        question: What is asked of all rows; None where a column says it.
        kind: The kind of question of all rows; None where a column says it, or there is none.
        prefix: What the names of rows without an id begin with.
        fields: Further columns that go along with each sample -> the classes that their numbers
            stand for; none for columns of other types.
    """

    table: HFTable
    layout: HFLayout
    facts: TableFacts
    root: Path
    question: str | None
    kind: str | None
    prefix: str
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def read(self, row: int) -> Sample:
        """Return the sample of a row.

        Raises:
            DataError: It can't be used; the message names split, row and column.
        """
        texts = self.table.read_texts(row)
        where = TableRow(Path(self.table.name), row, columns=self._names)
        images, picture = self._find_images(row, where)
        sample = self._read_task(texts, where, images)
        name, fields = self._find_name(row, texts), self._read_fields(texts, where)
        partner = name_row(texts.get(self.layout.columns.partner or "")) or None
        extras: Any = {"picture": picture, "fields": fields, "partner": partner}
        return replace(sample, id=name, images=images, **extras)

    def _read_fields(self, texts: Mapping[str, Any], where: TableRow) -> Fields:
        """Return the further columns of a row; numbers of classes by their names."""
        found = read_sample_fields(texts, list(self.fields), where)
        for name, classes in self.fields.items():
            if not classes:
                continue
            if found[name] not in range(len(classes)):
                problem = f"is {found[name]!r}, which is none of the {len(classes)} classes"
                raise where.error(problem, "field", name)
            found[name] = classes[int(found[name])]
        return found

    def _read_task(
        self, texts: Mapping[str, Any], where: TableRow, images: Sequence[Path | LazyImage]
    ) -> Sample:
        """Return the sample without id and images."""
        columns = self.layout.columns
        if columns.label is not None:
            if columns.image and not images:
                raise where.error("is empty; a picture was expected", IMAGE_FILE, "image")
            label = self._name_class("label", texts[columns.label], columns.label, where)
            return Sample(id="", label=normalise_label(label))
        kind = texts.get(columns.kind or "", self.kind)
        if columns.kind is not None and kind is not None:
            kind = self._name_class("kind", kind, columns.kind, where)
        system = texts.get(columns.system or "")
        if columns.conversation is not None:
            turns = _flatten_pairs(texts[columns.conversation])
            content = {_CONTENT: turns, "system": system, "kind": kind}
            reader = LlavaRow(where, self.root, UnreadLlavaRows())
            return reader.make_sample(content, images)
        turns = [self._read_question(texts, where, len(images)), self._read_answer(texts, where)]
        return Sample(id="", conversation=turns, system=system, kind=kind)

    def _read_question(self, texts: Mapping[str, Any], where: TableRow, images: int) -> Turn:
        """Return the user's turn; pictures stand where it says so, else before it."""
        column = self.layout.columns.question
        text = self.question if column is None else texts[column]
        if not isinstance(text, str):
            raise where.error("is empty; a question was expected", "question", column or "")
        turn = join_turn_around_images(text.split(PLACEHOLDER))
        if turn.images not in (0, images):
            problem = f"{turn.images} {PLACEHOLDER} placeholders, but {images} pictures. Write one"
            raise where.error(f"{problem} per picture, or none", "placeholders", column or "")
        return turn if turn.images else replace(turn, images=images)

    def _read_answer(self, texts: Mapping[str, Any], where: TableRow) -> Turn:
        """Return the assistant's turn; of several answers the most frequent one."""
        column = str(self.layout.columns.answer)
        value = texts[column]
        given = value if isinstance(value, list) else [value]
        answers = [text.strip() for text in given if isinstance(text, str) and text.strip()]
        if not answers:
            raise where.error("is empty; an answer was expected", "answer", column)
        return Turn("assistant", Counter(answers).most_common(1)[0][0])

    def find_labels(self, rows: NDArray[np.int64]) -> dict[str, int]:
        """Return the different labels of some rows, and at which place of these each is first.

        A row whose label can't be used is passed over; it says so when it is read.
        """
        column = self.layout.columns.label
        if column is None:
            return {}
        values, first = self.table.read_column(column), dict[Any, int]()
        for place, row in enumerate(rows.tolist()):
            first.setdefault(values[row], place)
        where = TableRow(Path(self.table.name), 0)
        found: dict[str, int] = {}
        for value, place in first.items():
            with suppress(DataError):
                name = normalise_label(self._name_class("label", value, column, where))
                found.setdefault(name, place)
        return found

    def _name_class(self, role: str, value: object, column: str, where: TableRow) -> str:
        """Return the name of a class, which a number may stand for."""
        names = self.layout.classes.get(role)
        if isinstance(value, int) and names is not None:
            if 0 <= value < len(names):
                return names[value]
            problem = f"{value} is none of the {len(names)} classes; in a test split it often says"
            raise where.error(f"{problem} that the {role} is not published", role, column)
        if value is None or not str(value).strip():
            raise where.error(f"is empty; a {role} was expected", role, column)
        return str(value)

    def _find_images(self, row: int, where: TableRow) -> tuple[list[Path | LazyImage], str | None]:
        """Return the pictures of a row, and what they are called together."""
        images: list[Path | LazyImage] = []
        names = []
        for number, known in enumerate(self.facts.list_row(row)):
            width, height = int(known["width"]), int(known["height"])
            if width < 0:
                path = where.find_image(
                    self.root,
                    str(self.table.read_pictures(row)[number]),
                    field="image",
                    way_out="Correct the path, or `image_root`",
                )
                images.append(path)
                names.append(path.relative_to(self.root).as_posix())
                continue
            if not width:
                raise _explain_picture(self.table, row, number)
            draw = partial(_draw_picture, self.table, row, number)
            content = name_content(known)
            images.append(LazyImage((width, height), draw, content))
            names.append(content)
        return images, ", ".join(names) or None

    def _find_name(self, row: int, texts: Mapping[str, Any]) -> str:
        name = name_row(texts.get(self.table.id or ""))
        if not name:
            return f"{self.prefix}-{row}"
        repeated = self.facts.repeated
        place = bisect_left(repeated, row)
        is_repeated = place < len(repeated) and repeated[place] == row
        return f"{name}#{row}" if is_repeated else name

    @cached_property
    def _names(self) -> tuple[tuple[str, str], ...]:
        """What readers of conversations and pictures call a column, with its name."""
        columns = self.layout.columns
        pairs = ((_CONTENT, columns.conversation), ("image", columns.image))
        return tuple((role, name) for role, name in pairs if name)


class HFSamples(StoredSamples):
    """Samples of a table.

    Args:
        reader: Makes each sample.
        rows: The rows, in order.
    """

    def __init__(self, reader: HFRowReader, rows: NDArray[np.int64]) -> None:
        self.reader = reader
        told = reader.question, reader.kind, reader.prefix, *reader.fields
        read = repr((reader.layout.columns, reader.layout.classes, *told))
        super().__init__({"row": rows}, {"content": reader.facts.content, "read": read})

    def find_examples(self) -> list[int]:
        """Return the indices of the first sample of each label; of the first one without labels."""
        rows: Any = self.columns["row"]
        return list(self.reader.find_labels(rows).values()) or [0][: len(self)]

    def list_labels(self) -> list[str]:
        """Return the different labels of the samples."""
        rows: Any = self.columns["row"]
        return [self.labels.get(label, label) for label in self.reader.find_labels(rows)]

    def make(self, index: int) -> Sample:
        """Return the sample of an index.

        Raises:
            DataError: The row can't be used; the message names split, row and column.
        """
        rows: Any = self.columns["row"]
        return self.reader.read(int(rows[index]))


def _draw_picture(table: HFTable, row: int, number: int) -> Image.Image:
    """Decode one of the pictures of a row.

    Raises:
        DataError: It can't be read; the message names split, row and column.
    """
    stored: Any = table.read_pictures(row)[number]
    return open_image_file(stored, table.name_cell(row, str(table.image)))


def _explain_picture(table: HFTable, row: int, number: int) -> DataError:
    """Return the error that says what is wrong with one of the pictures of a row."""
    stored: Any = table.read_pictures(row)[number]
    problem = inspect_image_file(stored, table.name_cell(row, str(table.image)))
    return DataError(str(problem), IMAGE_FILE)


def _flatten_pairs(value: Any) -> Any:
    """Return turns, made of pairs of `user` and `assistant` where there are such."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, dict) or not {"user", "assistant"} <= first.keys():
        return value
    turns = []
    for pair in value:
        turns += [{"role": role, "content": pair.get(role)} for role in ("user", "assistant")]
    return turns
