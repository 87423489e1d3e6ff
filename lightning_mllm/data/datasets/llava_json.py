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

from lightning_mllm.data.datasets.llava_rows import LlavaRow, UnreadLlavaRows
from lightning_mllm.data.datasets.rows import FileRow, open_rows_file
from lightning_mllm.data.images.files import list_image_files
from lightning_mllm.data.loading.bad_rows import BadRows
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.duplicates import link_duplicate_samples
from lightning_mllm.data.loading.splits import Split, check_split_fractions, stratified_split
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

_BETWEEN_ROWS = re.compile(r"[\s,]*")

logger = logging.getLogger(__name__)


class LlavaJson(MLLMDataModule):
    """Conversations from JSON files, each a list of rows as LLaVA's training reads them.

    A row has an `id`, an `image` or `images` (a path, a list of paths, or none: a text-only
    sample), and `conversations`, a list of `{"from": "human" | "gpt", "value": ...}` in
    alternation, or `messages` with `role` (user, assistant) and `content`, which may be a list of
    parts (`{"type": "text" | "image", ...}`). Rows without an id, or with that of an earlier row,
    as in LLaVA's own files, are named by their number.

    A system text is a first turn or the key `system`. `<image>` in a human's text, or an image
    part, stands for an image and keeps its place, if the chat template can keep it. Rows of the
    same images are about one picture, so that what is found of them counts as dependent. A row with
    a `kind` (text: the kind of its last question) is scored by exact match of its last answer.

    A first answer without a question is left out, and keys that are not read are named, in one
    warning each; keys whose content would be lost (video, tools, weights of turns, ...) are an
    error. `.jsonl` files (one row per line) are read too.

    Args:
        train: JSON file of the training split.
        val: JSON file of the validation split. Without it, a seeded part of the training file takes
            its place, in which rows that share a picture stay together.
        test: JSON file of the test split.
        image_root: Folder that image paths are relative to, and may not leave; by default the
            folder of the JSON file.
        val_fraction: Fraction of the training file that is used for validation, without `val`.
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
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
        check_split_fractions(val_fraction)
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
            return self._draw_part(split)
        file = self.files[split]
        if file is None:
            raise DataError(
                f"There is no {split!r} split: set `{split}` to a JSON file, or let a command that "
                "has the option --split, such as analyze, take train or val."
            )
        return self._read(file)

    def _draw_part(self, split: Split) -> list[Sample]:
        """Return a split that is drawn from the training file."""
        samples = self._read(str(self.files["train"]))
        parts = self._parts
        if not parts:
            linked = link_duplicate_samples(samples)
            parts = stratified_split({"": linked}, self.val_fraction, 0, self.seed)
        self._parts = {} if self.bad_rows.will_raise else parts
        if split == "val" and self.val_fraction and not parts["val"]:
            raise DataError(
                f"All {len(samples)} rows of {self.files['train']} are linked by the pictures that "
                "they share, so that none can be held out for validation. Give a file as `val`."
            )
        return [samples[index] for index in sorted(parts[split])]

    def _read(self, file: str) -> list[Sample]:
        """Return the samples of a file, which is read once unless rows are refused."""
        samples = self._read_files.get(file) or self._parse(Path(file))
        if not self.bad_rows.will_raise:
            self._read_files[file] = samples
        return samples

    def _parse(self, file: Path) -> list[Sample]:
        """Return the samples of a file; those without an id of their own get their row's number."""
        with open_rows_file(file) as lines:
            text = lines.read()
        root = (Path(self.image_root) if self.image_root else file.parent).resolve()
        if not root.is_dir():
            raise DataError(
                f"The image root {root} is not a folder. Set `image_root` to the folder of the "
                "images."
            )
        samples: dict[str, Sample] = {}
        renamed = 0
        unread = UnreadLlavaRows()
        for number, content in _parse_rows(file, text, self.bad_rows):
            with self.bad_rows.catch():
                sample = LlavaRow(FileRow(file, number), root, unread).make_sample(content)
                name = sample.id or str(number)
                if name in samples:
                    name = f"{name}#{number}"
                renamed += name != sample.id
                picture = self._name_picture(sample, root)
                samples[name] = replace(sample, id=name, picture=picture)
        self.bad_rows.settle()
        unread.warn(file)
        if renamed:
            logger.warning(
                "%d rows of %s have no id, or that of an earlier row: named by row number",
                renamed,
                file,
            )
        return list(samples.values())

    def _name_picture(self, sample: Sample, root: Path) -> str | None:
        """Return a sample's image paths below the folder that all splits have in common.

        So "1.jpg" of two folders is not one picture.
        """
        folders = [Path(file).parent.resolve() for file in self.files.values() if file]
        base = root if self.image_root else os.path.commonpath(folders)
        paths = [path.relative_to(base).as_posix() for path in list_image_files(sample)]
        return ", ".join(paths) or None


def _parse_rows(file: Path, text: str, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
    """Yield number and content of the rows of a JSON list, or of a file with one row per line."""
    if file.suffix == ".jsonl":
        # a text may hold other kinds of line breaks
        lines = [line for line in text.split("\n") if line.strip()]
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:
                bad_rows.add(_make_error(FileRow(file, number), error, "malformed JSON"))
            else:
                yield number, content
        return
    try:
        contents = json.loads(text)
    except json.JSONDecodeError as error:
        raise _make_error(FileRow(file, _find_row(text, error.pos)), error) from error
    if not isinstance(contents, list):
        raise DataError(f"{file} holds a {type(contents).__name__}; a list of rows was expected.")
    yield from enumerate(contents, 1)


def _find_row(text: str, position: int) -> int:
    """Return the number of the row in which parsing failed at a position."""
    decoder = json.JSONDecoder()
    at, row = text.find("[") + 1, 1
    while at < position:
        between = _BETWEEN_ROWS.match(text, at)
        assert between is not None  # matches ""
        try:
            _, at = decoder.raw_decode(text, between.end())
        except json.JSONDecodeError:
            break
        row += 1
    return row


def _make_error(row: FileRow, error: json.JSONDecodeError, kind: str = "row") -> DataError:
    where = f"line {error.lineno}, column {error.colno}"
    problem = f"malformed JSON, {error.msg} ({where}). Rows must be objects with id, image and"
    return row.error(f"{problem} conversations", kind)
