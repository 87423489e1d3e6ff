"""Samples of which nothing is kept but arrays: a million of them take as little as their names."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.loading.text_array import TextArray
from lightning_mllm.types import Sample

Column = NDArray[np.generic] | TextArray  # one entry per sample
Indices = Sequence[int] | NDArray[np.integer]


class StoredSamples(Sequence[Sample], ABC):
    """Samples that are made from arrays, and from a file or folder, each time they are asked for.

    A subclass implements `make`. To make a sample must be cheap (some 100 microseconds), and give
    the same sample each time: set-up asks for each of them once or twice, and a worker for those of
    its batches. So no process keeps objects of all samples, and workers share the arrays.

    Args:
        columns: Name -> an array with one entry per sample: all that tells samples apart.
        source: What else decides what the samples are, such as a file's path, size and time; equal
            columns and sources are equal samples.

    Attributes:
        columns: The arrays, as given or selected.
        source: As given.
        labels: Label as made -> label as it is shown; empty to leave labels as they are.
    """

    def __init__(self, columns: Mapping[str, Column], source: Mapping[str, str]) -> None:
        self.columns, self.source = dict(columns), dict(source)
        self.labels: dict[str | None, str] = {}

    @abstractmethod
    def make(self, index: int) -> Sample:
        """Return the sample of an index of the columns, at least 0.

        Raises:
            DataError: It can't be made.
        """

    def select(self, indices: Indices) -> Self:
        """Return some of the samples, in the order of the indices."""
        chosen = np.asarray(indices, dtype=np.int64)
        other = copy.copy(self)
        other.columns = {}
        for name, column in self.columns.items():
            is_text = isinstance(column, TextArray)
            other.columns[name] = column.take(chosen) if is_text else column[chosen]
        return other

    def with_labels(self, labels: Mapping[str | None, str]) -> Self:
        """Return the same samples with other labels, by the labels that they are made with."""
        other = copy.copy(self)
        other.labels = dict(labels)
        return other

    def list_labels(self) -> list[str]:
        """Return the different labels of the samples."""
        return list({sample.label: None for sample in self if sample.label is not None})

    def digest(self) -> str:
        """Return a short hash of all that decides what the samples are."""
        found = sha256(repr((type(self).__qualname__, self.source, self.labels)).encode())
        for name, column in self.columns.items():
            arrays = (column.content, column.ends) if isinstance(column, TextArray) else (column,)
            for array in arrays:
                found.update(f"{name} {array.dtype} {array.shape} ".encode())
                found.update(np.ascontiguousarray(array).view(np.uint8).data)
        return found.hexdigest()[:32]

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(next(iter(self.columns.values())))

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Sample | Self:
        """Make the sample of an index, or select those of a slice."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        sample = self.make(range(len(self))[index])
        label = self.labels.get(sample.label, sample.label)
        return sample if label == sample.label else replace(sample, label=label)

    def __iter__(self) -> Iterator[Sample]:
        """Make the samples one after another."""
        for index in range(len(self)):
            yield self[index]
