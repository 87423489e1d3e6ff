"""Conversations about images in LLaVA's JSON format."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.datasets.json_rows import MalformedRowsError, RowBytes
from lightning_mllm.data.datasets.llava_samples import (
    LlavaFileReader,
    LlavaSamples,
    make_row_error,
)
from lightning_mllm.data.datasets.rows import FileRow, ImageRoot, open_rows_file
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import (
    Split,
    check_split_fractions,
    find_val_fraction,
    stratified_split,
)
from lightning_mllm.data.loading.stored import Column
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

_BETWEEN_ROWS = re.compile(r"[\s,]*")


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
    a `kind` (text: the kind of its last question) is scored by exact match of its last answer. A
    `partner` is the id of the row that differs from it in one thing, for patching.

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
        val_fraction: Fraction of the training file that is used for validation, without `val`; by
            default 0.1, but at most 5,000 samples.
        fields: Further keys of each row, text or numbers, that go along with its sample: what
            probes can read (`targets` and `numbers` of ProbeEachEpoch).
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    def __init__(
        self,
        *,
        train: str,
        val: str | None = None,
        test: str | None = None,
        image_root: str | None = None,
        val_fraction: float | None = None,
        fields: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_split_fractions(val_fraction)
        self.files: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.image_root, self.val_fraction = image_root, val_fraction
        self.fields = tuple(fields)
        self._read_files: dict[str, LlavaSamples] = {}  # training and validation may come from one
        self._parts: dict[Split, NDArray[np.int64]] = {}  # of the seeded split

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

    def describe_source(self, splits: Sequence[Split]) -> dict[str, str] | None:
        """Return path, size and time of the files; None if one is missing."""
        source = {"images": str(self.image_root and Path(self.image_root).resolve())}
        source |= {"fields": repr(self.fields)} if self.fields else {}
        for file in filter(None, self.files.values()):
            if not Path(file).is_file():
                return None
            status = Path(file).stat()
            source[file] = f"{Path(file).resolve()} {status.st_size} {status.st_mtime_ns}"
        return source

    def restore(self, split: Split, columns: Mapping[str, Column]) -> LlavaSamples:
        """Return the samples of the rows that have these columns."""
        file = Path(str(self.files[split] or self.files["train"]))
        root = (Path(self.image_root) if self.image_root else file.parent).resolve()
        common = self._find_common_folder(root)
        return LlavaSamples(RowBytes(file), ImageRoot(root), common, columns, self.fields)

    def _draw_part(self, split: Split) -> LlavaSamples:
        """Return a split that is drawn from the training file."""
        samples = self._read(str(self.files["train"]))
        parts = self._parts
        if not parts:
            linked = samples.link()
            fraction = find_val_fraction(self.val_fraction, len(samples), str(self.files["train"]))
            drawn = stratified_split({"": linked}, fraction, 0, self.seed)
            for name, indices in drawn.items():
                parts[name] = np.sort(np.array(indices, np.int64))
        self._parts = {} if self.bad_rows.will_raise else parts
        if split == "val" and self.val_fraction != 0 and not len(parts["val"]):
            raise DataError(
                f"All {len(samples)} rows of {self.files['train']} are linked by the pictures that "
                "they share, so that none can be held out for validation. Give a file as `val`."
            )
        return samples.select(parts[split])

    def _read(self, file: str) -> LlavaSamples:
        """Return the samples of a file, which is read once unless rows are refused."""
        samples = self._read_files.get(file) or self._parse(Path(file))
        if not self.bad_rows.will_raise:
            self._read_files[file] = samples
        return samples

    def _parse(self, file: Path) -> LlavaSamples:
        """Return the samples of a file; those without an id of their own get their row's number."""
        with open_rows_file(file):  # refuses one that is missing
            root = (Path(self.image_root) if self.image_root else file.parent).resolve()
        if not root.is_dir():
            raise DataError(
                f"The image root {root} is not a folder. Set `image_root` to the folder of the "
                "images."
            )
        images = ImageRoot(root)
        reader = LlavaFileReader(file, images, self._find_common_folder(root), self.fields)
        try:
            samples = reader.read(collects_pictures=self.files["val"] is None)
        except MalformedRowsError:
            _explain_malformed(file)
            raise
        self.further_files = [*self.further_files, *images.absent]
        for error in reader.errors:
            self.bad_rows.add(error)
        self.bad_rows.settle()
        reader.warn()
        return samples

    def _find_common_folder(self, root: Path) -> str:
        """Return the folder that all splits have in common, below which pictures are named.

        So "1.jpg" of two folders is not one picture.
        """
        folders = [Path(file).parent.resolve() for file in self.files.values() if file]
        return str(root if self.image_root else os.path.commonpath(folders))


def _explain_malformed(file: Path) -> None:
    """Raise why a file is no list of rows; for that it is read as a whole.

    Raises:
        DataError: The reason, with the row.
    """
    with open_rows_file(file) as lines:
        text = lines.read()
    try:
        contents = json.loads(text)
    except json.JSONDecodeError as error:
        raise make_row_error(FileRow(file, _find_row(text, error.pos)), error) from error
    if not isinstance(contents, list):
        raise DataError(f"{file} holds a {type(contents).__name__}; a list of rows was expected.")


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
