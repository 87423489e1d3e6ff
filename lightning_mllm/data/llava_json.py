"""Conversations about images in LLaVA's JSON format."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_mllm.data.bad_rows import BadRows
from lightning_mllm.data.base import MLLMDataModule
from lightning_mllm.data.splits import Split, check_fractions, stratified_split
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample, Turn

PLACEHOLDER = "<image>"
_BETWEEN_ROWS = re.compile(r"[\s,]*")
_ROLES = {"human": "user", "gpt": "assistant"}

logger = logging.getLogger(__name__)


class LlavaJson(MLLMDataModule):
    """Conversations from JSON files, each a list of rows as LLaVA's training reads them.

    A row has an `id` (those without one, or with that of an earlier row, as in LLaVA's own files, are named by their
    number), an `image` (a path, a list of paths, or none: a text-only sample), and `conversations`, a list
    of `{"from": "human" | "gpt", "value": ...}` in alternation. `<image>` in a human's text stands for an image; the
    text may be before or behind it, but images always come first in their turn, as LLaVA puts them. Rows whose `image`
    is written alike are about one picture, so that what is found of them counts as dependent. A row with a
    `kind` (text: the kind of its last question) is scored by exact match of its last answer. `.jsonl` files (one row
    per line) are read too.

    Args:
        train: JSON file of the training split.
        val: JSON file of the validation split; without it, a seeded part of the training file takes its place.
        test: JSON file of the test split.
        image_root: Folder that image paths are relative to, and may not leave; by default the JSON file's own.
        val_fraction: Part of the training file for validation, without `val`.
        **kwargs: Options of `MLLMDataModule`.
    """

    def __init__(
        self,
        *,
        train: str,
        val: str | None = None,
        test: str | None = None,
        image_root: str | None = None,
        val_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_fractions(val_fraction)
        self.files: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.image_root, self.val_fraction = image_root, val_fraction
        self._read_files: dict[str, list[Sample]] = {}  # training and validation may come from one

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split, in the order of the file.

        Raises:
            DataError: A file is missing or malformed; the message names file, row and field.
        """
        if split != "test" and self.files["val"] is None:
            samples = self._read(str(self.files["train"]))
            parts = stratified_split({"": range(len(samples))}, self.val_fraction, 0, self.seed)
            return [samples[index] for index in sorted(parts[split])]
        file = self.files[split]
        if file is None:
            raise DataError(f"There is no {split!r} split: set `{split}` to a JSON file.")
        return self._read(file)

    def _read(self, file: str) -> list[Sample]:
        if file not in self._read_files:
            self._read_files[file] = self._parse(file)
        return self._read_files[file]

    def _parse(self, file: str) -> list[Sample]:
        path = Path(file)
        if not path.is_file():
            raise DataError(f"The JSON file {path} does not exist. Correct the path.")
        root = (Path(self.image_root) if self.image_root else path.parent).resolve()
        if not root.is_dir():
            raise DataError(f"The image root {root} is not a folder. Set `image_root` to the folder of the images.")
        samples: dict[str, Sample] = {}
        renamed = 0
        for number, row in _rows(path, self.bad_rows):
            with self.bad_rows.catch():
                sample = _Row(path, number, root).sample(row)
                name = sample.id or str(number)
                if name in samples:
                    name = f"{name}#{number}"
                renamed += name != sample.id
                samples[name] = replace(sample, id=name)
        self.bad_rows.settle()
        if renamed:
            logger.warning("%d rows of %s have no id, or that of an earlier row: named by row number", renamed, path)
        return list(samples.values())


class _Row:
    """Reads one row, and knows where it is for the sake of messages. Rows count from 1."""

    def __init__(self, file: Path, number: int, root: Path) -> None:
        self._file, self._number, self._root = file, number, root

    def sample(self, row: object) -> Sample:
        if not isinstance(row, dict):
            raise self._error("", f"a {type(row).__name__} where an object was expected")
        name = row.get("id")
        if not isinstance(name, str | int | None):
            raise self._error("id", f"a {type(name).__name__} where text or a number was expected")
        kind = row.get("kind")
        if kind is not None and (not isinstance(kind, str) or not kind.strip()):
            raise self._error("kind", f"{kind!r} is no text. Give the kind of question, or leave it out")
        paths = self._paths(row.get("image"))
        images = [self._image(path) for path in paths]
        turns = self._turns(row.get("conversations"))
        placeholders = sum(turn.images for turn in turns)
        if placeholders != len(images):
            relation = "fewer" if placeholders < len(images) else "more"
            raise self._error(
                "conversations",
                f"{relation} {PLACEHOLDER} placeholders ({placeholders}) than images ({len(images)}). "
                "Write one per image",
            )
        picture = ", ".join(map(str, paths)) or None
        name = "" if name is None else str(name)
        return Sample(id=name, images=images, conversation=turns, kind=kind, picture=picture)

    def _paths(self, value: object) -> list[object]:
        if value is None:
            return []
        return value if isinstance(value, list) else [value]

    def _image(self, value: object) -> Path:
        if not isinstance(value, str) or not value:
            raise self._error("image", f"{value!r} is not a path. Give a path, a list of paths, or leave it out")
        path = (self._root / value).resolve()
        if not path.is_relative_to(self._root):
            raise self._error("image", f"{value!r} leads out of the image root {self._root}. Give a path inside")
        if not path.is_file():
            raise self._error("image", f"{path} does not exist. Correct the path, or `image_root`")
        return path

    def _turns(self, value: object) -> list[Turn]:
        if not isinstance(value, list) or not value or len(value) % 2:
            found = f"{len(value)} turns" if isinstance(value, list) else repr(value)[:40]
            raise self._error("conversations", f"{found}; pairs of a human's and a gpt's turn were expected")
        return [self._turn(turn, k) for k, turn in enumerate(value)]

    def _turn(self, turn: object, k: int) -> Turn:
        field = f"conversations[{k}]"
        expected = ("human", "gpt")[k % 2]
        if not isinstance(turn, dict) or turn.get("from") not in _ROLES:
            raise self._error(field, "no object with 'from' (human or gpt) and 'value'")
        if turn["from"] != expected:
            raise self._error(
                field, f"is from {turn['from']!r}, but {expected!r} was expected: turns alternate and begin with human"
            )
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            raise self._error(field, "'value' is missing, empty or no text")
        text: str = turn["value"]
        if expected == "gpt":
            if PLACEHOLDER in text:
                raise self._error(field, f"{PLACEHOLDER} in an answer. Only a human's text can have images")
            return Turn("assistant", text.strip())
        return Turn("user", text.replace(PLACEHOLDER, "").strip(), images=text.count(PLACEHOLDER))

    def _error(self, field: str, problem: str) -> DataError:
        where = f", field {field!r}" if field else ""
        return DataError(f"{self._file}, row {self._number}{where}: {problem}.", field.partition("[")[0] or "row")


def _rows(path: Path, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
    """Yield number and content of the rows of a JSON list, or of a file with one JSON object per line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}). Save it again as UTF-8.") from error
    if path.suffix == ".jsonl":
        lines = [line for line in text.split("\n") if line.strip()]  # a text may hold other kinds of line breaks
        for number, line in enumerate(lines, 1):
            try:
                row = _parse(path, number, line)
            except DataError as error:
                bad_rows.add(error)
            else:
                yield number, row
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(_malformed(path, _row_of(text, error.pos), error)) from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; a list of rows was expected.")
    yield from enumerate(rows, 1)


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(_malformed(path, number, error), "malformed JSON") from error


def _row_of(text: str, position: int) -> int:
    """Return the number of the row in which parsing failed at a position."""
    decoder = json.JSONDecoder()
    at, row = text.find("[") + 1, 1
    while at < position:
        try:
            _, at = decoder.raw_decode(text, _BETWEEN_ROWS.match(text, at).end())  # type: ignore[union-attr]  # matches ""
        except json.JSONDecodeError:
            break
        row += 1
    return row


def _malformed(path: Path, row: int, error: json.JSONDecodeError) -> str:
    return (
        f"{path}, row {row}: malformed JSON, {error.msg} (line {error.lineno}, column {error.colno}). "
        "Rows must be objects with id, image and conversations."
    )
