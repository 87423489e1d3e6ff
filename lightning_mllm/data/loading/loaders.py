"""Loaders of batches that resume in the middle of an epoch and say which sample is bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.sampler import GlobalBatchSampler, Key
from lightning_mllm.errors import ConfigError, UserError
from lightning_mllm.store.manifest import describe_manifest_changes, find_manifest_changes
from lightning_mllm.types import Sample

Collate = Callable[[Sequence[tuple[int, Sample]]], MultimodalBatch]


class _Keys(Dataset[Key]):
    """Returns each key as it is: samples are fetched together with their batch."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __getitem__(self, key: Key) -> Key:
        return key

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True)
class _Refusal:
    """Why there is no batch.

    An exception from a worker process would come with its traceback as its message.
    """

    error: UserError


class _Batches:
    """Makes the batch of some keys, or returns why it can't."""

    def __init__(self, samples: Sequence[Sample], collator: Collate) -> None:
        self._samples, self._collator = samples, collator

    def __call__(self, keys: Sequence[Key]) -> MultimodalBatch | _Refusal:
        try:
            items = [(epoch, fetch_sample(self._samples, index)) for epoch, index in keys]
            return self._collator(items)
        except UserError as error:
            return _Refusal(error)


class BatchLoader:
    """Loads batches, in this process or in workers, without using the global random state.

    It holds a torch DataLoader but is not one: Lightning replaces the sampler of those it is given.

    Args:
        samples: The samples of the split.
        collator: Makes a batch of samples, each with its epoch.
        batch_sampler: Says which samples make which batch.
        num_workers: Processes that load data.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        collator: Collate,
        batch_sampler: GlobalBatchSampler,
        num_workers: int = 0,
    ) -> None:
        self.batch_sampler = batch_sampler
        self._loader: DataLoader[Any] = DataLoader(
            _Keys(len(samples)),
            batch_sampler=batch_sampler,
            collate_fn=_Batches(samples, collator),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # seeds the workers, which draw no random numbers
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[MultimodalBatch]:
        yield from self._load_batches()

    def _load_batches(self) -> Iterator[MultimodalBatch]:
        """Yield the batches, or raise why one can't be made.

        Raises:
            UserError: A sample can't be used; the message names it.
        """
        for batch in self._loader:
            if isinstance(batch, _Refusal):
                raise batch.error
            yield batch


class ResumableLoader(BatchLoader):
    """A `BatchLoader` whose place in the epoch Lightning saves and restores."""

    _epoch = 0
    _handed_out = 0
    _resumes = False

    def __iter__(self) -> Iterator[MultimodalBatch]:
        # A generator, so this runs when the first batch is asked for: Lightning makes it before it
        # sets the epoch.
        if not (self._resumes and self._epoch == self.batch_sampler.epoch):
            self._epoch, self._handed_out = self.batch_sampler.epoch, 0
        self._resumes = False
        self.batch_sampler.start = self._handed_out
        for batch in self._load_batches():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how many of its batches were handed out, and what they depend on."""
        return {"epoch": self._epoch, "batches": self._handed_out, **self.batch_sampler.options}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that were handed out, if the next iteration has that epoch.

        Raises:
            ConfigError: The batches are made with different settings, so that samples would be
                repeated or left out.
        """
        now = self.batch_sampler.options
        changes = find_manifest_changes({name: state[name] for name in now}, now)
        if changes:
            raise ConfigError(
                "The checkpoint's batches were created with different settings: "
                f"{describe_manifest_changes(changes)}. Training would repeat some samples of "
                "the epoch and leave out others. Resume with the same data and options, or start a "
                "new run from the checkpoint's weights."
            )
        self._epoch, self._handed_out = state["epoch"], state["batches"]
        self._resumes = True
