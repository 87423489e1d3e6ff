"""What a dataset class implements: it reads the samples of each split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

from lightning_mllm.data.loading.bad_rows import BadRows
from lightning_mllm.data.loading.splits import SPLITS, Split
from lightning_mllm.data.loading.stored import Column, StoredSamples
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample


class SampleReader(ABC):
    """Reads the samples of a dataset's splits.

    Attributes:
        splits: The splits that the dataset has; the first has all classes.
        bad_rows: Collects rows that can't be used; `load` may add its own.
        further_files: Files that decide, beside those of the samples, what set-up finds: other
            pictures of a folder that splits are drawn from, or files that rows name and that are
            not there. If one is changed, what was kept for later starts no longer holds.
    """

    splits: ClassVar[tuple[Split, ...]] = SPLITS

    bad_rows: BadRows
    further_files: Sequence[str] = ()
    _first: Sequence[Sample] | None = None  # the first split as loaded, which has all classes

    @abstractmethod
    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split, images not yet opened; labels may have underscores.

        It is called for the first of `splits` at every stage, since the classes come from the
        training split. To report all bad rows at once, put `with self.bad_rows.catch():` around
        what reads a row and may raise a `DataError`, and call `self.bad_rows.settle()` at the end.
        """

    @property
    def shares_set_up(self) -> bool:
        """Whether the first of several processes checks the samples for all."""
        return type(self).restore is not SampleReader.restore

    def describe_source(self, splits: Sequence[Split]) -> Mapping[str, str] | None:
        """Return what decides, beside options, which samples splits have: files, sizes, times.

        Without it nothing is kept for later starts. A dataset of `StoredSamples` implements it
        together with `restore`; it must be cheap.
        """
        return None

    def restore(self, split: Split, columns: Mapping[str, Column]) -> StoredSamples:
        """Return the samples of a split that have these columns, in a later start or elsewhere."""
        raise NotImplementedError(f"{type(self).__name__} has no samples that are kept as arrays.")

    def load_split(self, split: Split) -> Sequence[Sample]:
        """Return what `load` does, and refuse an empty split."""
        self.bad_rows.split = split
        samples = self.load(split)
        if not samples:
            option = "path" if split == "train" else f"{split}_fraction"
            skip = "" if split == "train" else "; `data check` can leave it out with --splits"
            raise DataError(
                f"The {split!r} split of {type(self).__name__} is empty. Give it samples, e.g. by "
                f"the dataset's {option} option{skip}."
            )
        return samples

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Report all bad rows at once; after an error the next attempt reads the dataset again."""
        try:
            with self.bad_rows.gather():
                yield
        except DataError:
            self._first = None
            raise
