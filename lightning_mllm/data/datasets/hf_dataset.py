"""Datasets of the Hugging Face hub, and tables of parquet, arrow, jsonl and tar files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray

from lightning_mllm.data.datasets.hf_columns import HFColumns, HFLayout, find_layout, list_columns
from lightning_mllm.data.datasets.hf_fields import find_field_classes
from lightning_mllm.data.datasets.hf_pictures import HFTable, find_table_facts
from lightning_mllm.data.datasets.hf_rows import HFRowReader, HFSamples
from lightning_mllm.data.datasets.hf_source import HFSource
from lightning_mllm.data.datasets.hf_splits import HFSplit, draw_rows, find_split_names
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split, check_split_fractions, find_val_fraction
from lightning_mllm.data.loading.stored import Column
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample

_FOUND = HFColumns()  # by name and type

logger = logging.getLogger(__name__)


class HFDataset(MLLMDataModule):
    """Tables that Hugging Face's `datasets` reads: of the hub, or in files of your own.

    The table is mapped into memory, and a sample is made when it is asked for, so that all
    processes share it and hundreds of thousands of rows take next to no memory. Pictures may lie in
    the table or be files. They are looked at once; what is found is kept in the user's cache.

    Rows with a label are for classification; rows with a question and an answer, or with a
    conversation, are free-form. Code that comes with a dataset is never run.

    Args:
        path: Hub id, folder (also of `save_to_disk`), file, or glob of files: parquet, arrow,
            jsonl, csv, or tar files in the layout of WebDataset.
        config: Name of the config, of a dataset that has several.
        data_revision: Branch, tag or commit of a hub id; `revision` is that of the checkpoint.
        files: Split -> file or glob of files in the dataset, to read some of them only.
        train: Name of the training split; by default `train`, or the only one there is.
        val: Name of the validation split; by default `validation`, `val`, `valid` or `dev`. Without
            it, a seeded part of the training split takes its place.
        test: Name of the test split; by default `test`. If there is a single split in all, a seeded
            part of it takes its place.
        columns: Which column is the picture, the label, the question, ...; found by name and type
            if not given.
        question: What is asked of every row, for tables without a column of questions.
        kind: The kind of question of every row, for tables without a column of kinds: answers are
            scored by exact match.
        fields: Further columns, text or numbers, that go along with each sample: what probes can
            read (`targets` and `numbers` of ProbeEachEpoch).
        image_root: Folder that paths of pictures are relative to, and may not leave; by default the
            folder of the dataset.
        val_fraction: Fraction of the rows that make up the validation split, where it is drawn; by
            default a tenth, but about 5,000 rows at most.
        test_fraction: Fraction of the rows that make up the test split, where it is drawn.
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    def __init__(
        self,
        *,
        path: str,
        config: str | None = None,
        data_revision: str | None = None,
        files: dict[str, str] | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        columns: HFColumns = _FOUND,
        question: str | None = None,
        kind: str | None = None,
        fields: Sequence[str] = (),
        image_root: str | None = None,
        val_fraction: float | None = None,
        test_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_split_fractions(val_fraction, test_fraction)
        self.columns = columns
        for role, told in (("question", question), ("kind", kind)):
            if told is not None and (column := getattr(columns, role)):
                raise ConfigError(
                    f"The {role} of all rows is {told!r} ({role}), and that of each is in column "
                    f"{column!r} (columns.{role}). Give one of them."
                )
        self.fields = tuple(fields)
        self.source = HFSource(path, config, data_revision, files)
        self.names: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.question, self.kind, self.image_root = question, kind, image_root
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._opened: dict[str, Any] = {}  # split of the dataset -> table
        self._readers: dict[str, HFRowReader] = {}
        self._samples: dict[Split, HFSamples] = {}
        self._parts: dict[Split, NDArray[np.int64]] = {}  # of the seeded split

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split, in the order of the table.

        Raises:
            DataError: The dataset, a split or a column is missing or can't be read; the message
                lists what there is.
        """
        samples = self._samples.get(split)
        if samples is None:
            samples = self._leave_out_first(self._find_samples(split))
        if not self.bad_rows.will_raise:
            self._samples[split] = samples
        self.bad_rows.settle()
        return samples

    def describe_source(self, splits: Sequence[Split]) -> dict[str, str]:
        """Return what stands for the content of the tables, and how they are read."""
        found = {"source": repr(self.source), "images": str(self._find_image_root())}
        for split in dict.fromkeys((self.splits[0], *splits)):
            reader = self._find_reader(self._find_split(split).name)
            read = reader.layout.columns, reader.layout.classes, *reader.fields
            found[reader.prefix] = f"{reader.facts.content} {read!r}"
        return found

    def restore(self, split: Split, columns: Mapping[str, Column]) -> HFSamples:
        """Return the samples of a split that have these columns, in a later start or elsewhere."""
        rows: Any = columns["row"]
        return HFSamples(self._find_reader(self._find_split(split).name), rows)

    def _find_split(self, split: Split) -> HFSplit:
        """Return where the rows of a split come from."""
        self._opened = self._opened or self.source.open()
        splits = find_split_names(self.names, list(self._opened), self.source.path)
        if split not in splits:
            present = ", ".join(map(repr, self._opened))
            raise DataError(
                f"{self.source.path} has no {split!r} split, only {present}. Set `{split}` to one "
                "of them.",
                "split",
            )
        return splits[split]

    def _find_samples(self, split: Split) -> HFSamples:
        """Return all samples of a split."""
        name, drawn = self._find_split(split)
        reader = self._find_reader(name)
        if not drawn:
            return HFSamples(reader, np.arange(len(reader.table)))
        if not self._parts:
            test = self.test_fraction if "test" in drawn else 0.0
            val = find_val_fraction(self.val_fraction, len(reader.table), self.source.path)
            self._parts = draw_rows(reader, val, test, self.seed)
        return HFSamples(reader, self._parts[split])

    def _leave_out_first(self, samples: HFSamples) -> HFSamples:
        """Return the samples from the first on that can be used, which stands for all."""
        for index in range(len(samples)):
            known = self.bad_rows.noted
            with self.bad_rows.catch():
                samples[index]
            if self.bad_rows.noted == known:
                return samples.select(range(index, len(samples))) if index else samples
        return samples.select([])

    def state_dict(self) -> dict[str, Any]:
        """Return the training loader's place in the epoch, and what it has read."""
        return {**super().state_dict(), "tables": self._list_contents()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let training continue at that place.

        Raises:
            ConfigError: The training rows have another content than those that were trained on.
        """
        super().load_state_dict(state_dict)
        trained = state_dict.get("tables", {})
        is_fit = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        for name, content in self._list_contents().items():
            if is_fit and trained.get(name, content) != content:
                raise ConfigError(
                    f"The checkpoint was trained on other rows: split {name!r} of "
                    f"{self.source.path} has another content now. Resume with the same data, or "
                    "start a new run from the checkpoint's weights."
                )

    def describe_inputs(self) -> dict[str, Any]:
        """Return how validation makes a model's inputs, and what stands for the tables' content."""
        record = super().describe_inputs()
        return {**record, "data": {**record["data"], "tables": self._list_contents()}}

    def _list_contents(self) -> dict[str, str]:
        """Return split of the dataset -> a text that stands for its content, as far as read."""
        return {name: reader.facts.content for name, reader in self._readers.items()}

    def _find_reader(self, name: str) -> HFRowReader:
        """Return what makes samples of a split of the dataset."""
        if name in self._readers:
            return self._readers[name]
        dataset = self._opened[name]
        where = f"{self.source.path}, split {name!r}"
        asks = self.question is not None
        features = dataset.features.to_dict()
        layout = find_layout(features, self.columns, where, asks=asks)
        fields = find_field_classes(features, self.fields, where)
        _log_layout(where, layout, fields)
        columns = layout.columns
        texts = (*(column for role, column in columns if role != "image"), *fields)
        table = HFTable(dataset, where, texts, columns.image or None, columns.id)
        question = None if columns.question else self.question
        kind = None if columns.kind else self.kind
        facts = find_table_facts(table)
        told = question, kind, name, fields
        reader = HFRowReader(table, layout, facts, self._find_image_root(), *told)
        self._readers[name] = reader
        return reader

    def _find_image_root(self) -> Path:
        """Return the folder that paths of pictures are relative to."""
        return (Path(self.image_root) if self.image_root else self.source.root).resolve()


def _log_layout(where: str, layout: HFLayout, fields: Mapping[str, object]) -> None:
    """Say how a table is read."""
    told = f"; fields: {', '.join(fields)}" if fields else ""
    unread = [name for name in layout.unread if name not in fields]
    told += f"; not read: {', '.join(unread)}" if unread else ""
    logger.info("%s: %s%s", where, list_columns(layout.columns), told)
