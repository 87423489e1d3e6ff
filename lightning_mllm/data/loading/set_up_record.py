"""What set-up has found of a stage's splits, kept for later starts and for the other processes."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.loading.bad_rows import BadRow, BadRows
from lightning_mllm.data.loading.check_manifest import warn_of_cache
from lightning_mllm.data.loading.known_files import KnownFiles
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.data.loading.sample_sizes import SampleSizes
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.loading.stored import Column, StoredSamples
from lightning_mllm.data.loading.text_array import TextArray
from lightning_mllm.store.files import replacing_file

Restore = Any  # (split, columns) -> StoredSamples


@dataclass(frozen=True)
class SplitOutcome:
    """What set-up has found of a split.

    Attributes:
        samples: The samples that can be used and fit.
        sizes: Their sizes.
        left_out: What does not fit.
        kinds: Kinds of questions.
    """

    samples: Any
    sizes: SampleSizes
    left_out: LeftOut
    kinds: tuple[str, ...]


class RestoresSamples(Protocol):
    """A dataset whose samples can be made again from their columns."""

    def restore(self, split: Split, columns: Mapping[str, Column]) -> StoredSamples:
        """Return the samples of a split with these columns."""


@dataclass(frozen=True)
class SetUpRecord:
    """What set-up has found, as arrays and plain data.

    Attributes:
        arrays: The arrays, by name.
        facts: All else.
    """

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=lambda: {"splits": {}, "labels": {}})

    def add_samples(self, name: str, samples: StoredSamples) -> None:
        """Note the columns of samples under a name."""
        self.facts["labels"][name] = list(samples.labels.items())
        for column, values in samples.columns.items():
            self._add_column(f"{name}/column/{column}", values)

    def add_outcome(self, split: Split, outcome: SplitOutcome) -> None:
        """Note what was found of a split."""
        self.add_samples(split, outcome.samples)
        self.arrays[f"{split}/images"] = outcome.sizes.images
        self.arrays[f"{split}/characters"] = outcome.sizes.characters
        self.facts["splits"][split] = {
            "digest": outcome.sizes.digest,
            "left_out": asdict(outcome.left_out),
            "kinds": outcome.kinds,
        }

    def add_files(self, files: KnownFiles) -> None:
        """Note by what the image files are known to be the same."""
        self._add_column("files/paths", files.paths)
        self.arrays["files/states"], self.arrays["files/sizes"] = files.states, files.sizes

    def find_samples(self, name: str, split: Split, dataset: RestoresSamples) -> StoredSamples:
        """Return the samples that were noted under a name."""
        start = f"{name}/column/"
        columns: dict[str, Column] = {}
        for key in self.arrays:
            if key.startswith(start):
                column = key.removeprefix(start).removesuffix(".ends")
                columns[column] = self._find_column(start + column)
        labels: dict[Any, str] = dict(self.facts["labels"][name])
        return dataset.restore(split, columns).with_labels(labels)

    def find_outcome(self, split: Split, dataset: RestoresSamples) -> SplitOutcome:
        """Return what was found of a split."""
        facts = self.facts["splits"][split]
        images, characters = self.arrays[f"{split}/images"], self.arrays[f"{split}/characters"]
        return SplitOutcome(
            self.find_samples(split, split, dataset),
            SampleSizes(images, characters, facts["digest"]),
            LeftOut(**facts["left_out"]),
            tuple(facts["kinds"]),
        )

    def find_files(self) -> KnownFiles:
        """Return by what the image files are known to be the same."""
        paths = self._find_column("files/paths")
        assert isinstance(paths, TextArray)  # `add_files` has it so
        return KnownFiles(paths, self.arrays["files/states"], self.arrays["files/sizes"])

    def write(self) -> bytes:
        """Return the record as the bytes of an `.npz` file."""
        buffer = io.BytesIO()
        facts = np.frombuffer(json.dumps(self.facts).encode(), np.uint8)
        arrays: Any = {**self.arrays, "facts": facts}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def read(cls, content: bytes) -> SetUpRecord:
        """Return the record of the bytes of an `.npz` file."""
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return cls(arrays, json.loads(arrays.pop("facts").tobytes()))

    def _add_column(self, name: str, column: Column) -> None:
        if isinstance(column, TextArray):
            self.arrays[name], self.arrays[f"{name}.ends"] = column.content, column.ends
        else:
            self.arrays[name] = column

    def _find_column(self, name: str) -> Column:
        values, ends = self.arrays[name], self.arrays.get(f"{name}.ends")
        return values if ends is None else TextArray(values, ends)


class SetUpMessages(logging.Handler):
    """Collects the warnings of a set-up, so that a later start can say them again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a warning."""
        self.found.append((record.name, record.levelno, record.getMessage()))

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Collect within the block."""
        package = logging.getLogger(__name__.partition(".")[0])
        package.addHandler(self)
        try:
            yield
        finally:
            package.removeHandler(self)


def note_bad_rows(bad_rows: BadRows, known: int) -> list[tuple[str, str, str]]:
    """Return the bad rows after the first `known`, as plain data."""
    return [(row.split, row.kind, row.problem) for row in list(bad_rows)[known:]]


def count_again(record: SetUpRecord, bad_rows: BadRows) -> None:
    """Note the rows that can't be used, as the process did that has found them."""
    rows = [BadRow(*row) for row in record.facts["bad_rows"]]
    bad_rows.take_over(rows, record.facts["bad_counts"])


def repeat_findings(record: SetUpRecord, bad_rows: BadRows) -> None:
    """Note again which rows can't be used, and say again what was said."""
    count_again(record, bad_rows)
    for name, level, text in record.facts["messages"]:
        logging.getLogger(name).log(level, "%s", text)


def set_up_record_path(key: str) -> Path:
    """Return where a record is: in the user's cache, since datasets may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lightning_mllm" / "set_up" / f"{key}.npz"


def keep_record(key: str, record: SetUpRecord) -> None:
    """Write a record in one step, or say why it can't be kept."""
    path = set_up_record_path(key)
    try:
        with replacing_file(path) as temporary:
            temporary.write_bytes(record.write())
    except OSError as error:
        warn_of_cache(path.parent, error)


def find_record(key: str) -> SetUpRecord | None:
    """Return the record of an earlier start, if there is one that can be read."""
    try:
        return SetUpRecord.read(set_up_record_path(key).read_bytes())
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
