"""Conversations about images in LLaVA's JSON format."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_mllm.data.datasets.llava_rows import LlavaRow, Unread
from lightning_mllm.data.loading.bad_rows import BadRows
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.duplicates import link_samples
from lightning_mllm.data.loading.splits import Split, check_fractions, stratified_split
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

_BETWEEN_ROWS = re.compile(r"[\s,]*")

logger = logging.getLogger(__name__)


class LlavaJson(MLLMDataModule):
    """Conversations from JSON files, each a list of rows as LLaVA's training reads them.

    A row has an `id` (those without one, or with that of an earlier row, as in LLaVA's own files, are named by their
    number), an `image` or `images` (a path, a list of paths, or none: a text-only sample), and `conversations`, a list
    of `{"from": "human" | "gpt", "value": ...}` in alternation, or `messages` with `role` (user, assistant) and
    `content`, which may be a list of parts (`{"type": "text" | "image", ...}`). A system text is a first turn or the
    key `system`. `<image>` in a human's text, or an image part, stands for an image and keeps its place, where the chat
    template can keep it. Rows of the same images are about one picture, so that what is found of them counts as
    dependent. A row with a `kind` (text: the kind of its last question) is scored by exact match of its last
    answer. A first answer to nothing is left out, and keys that are not read are named, in one warning each; keys with
    content that can't be taken (video, tools, weights of turns, ...) are an error. `.jsonl` files (one row per line)
    are read too.

    Args:
        train: JSON file of the training split.
        val: JSON file of the validation split; without it, a seeded part of the training file takes its place: rows
            that share a picture stay together.
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
        self._parts: dict[Split, list[int]] = {}  # of the seeded split

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split, in the order of the file.

        Raises:
            DataError: A file is missing or malformed; the message names file, row and field.
        """
        if split != "test" and self.files["val"] is None:
            samples = self._read(str(self.files["train"]))
            parts = self._parts or stratified_split({"": link_samples(samples)}, self.val_fraction, 0, self.seed)
            self._parts = {} if self.bad_rows.will_raise else parts
            if split == "val" and self.val_fraction and not parts["val"]:
                raise DataError(
                    f"All {len(samples)} rows of {self.files['train']} are linked by the pictures that they share, so "
                    "that none can be held out for validation. Give a file as `val`."
                )
            return [samples[index] for index in sorted(parts[split])]
        file = self.files[split]
        if file is None:
            raise DataError(f"There is no {split!r} split: set `{split}` to a JSON file.")
        return self._read(file)

    def _read(self, file: str) -> list[Sample]:
        samples = self._read_files.get(file) or self._parse(file)
        if not self.bad_rows.will_raise:
            self._read_files[file] = samples
        return samples

    def _parse(self, file: str) -> list[Sample]:
        path = Path(file)
        if not path.is_file():
            raise DataError(f"The JSON file {path} does not exist. Correct the path.")
        root = (Path(self.image_root) if self.image_root else path.parent).resolve()
        if not root.is_dir():
            raise DataError(f"The image root {root} is not a folder. Set `image_root` to the folder of the images.")
        samples: dict[str, Sample] = {}
        renamed = 0
        unread = Unread()
        for number, row in _rows(path, self.bad_rows):
            with self.bad_rows.catch():
                sample = LlavaRow(path, number, root, unread).sample(row)
                name = sample.id or str(number)
                if name in samples:
                    name = f"{name}#{number}"
                renamed += name != sample.id
                samples[name] = replace(sample, id=name, picture=self._picture(sample, root))
        self.bad_rows.settle()
        unread.warn(path)
        if renamed:
            logger.warning("%d rows of %s have no id, or that of an earlier row: named by row number", renamed, path)
        return list(samples.values())

    def _picture(self, sample: Sample, root: Path) -> str | None:
        """Return its paths below what all splits have in common: "1.jpg" of two folders is not one picture."""
        folders = [Path(file).parent.resolve() for file in self.files.values() if file]
        base = root if self.image_root else os.path.commonpath(folders)
        return ", ".join(path.relative_to(base).as_posix() for path in sample.images if isinstance(path, Path)) or None


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
