"""Which samples make which batch: the same global batches for any number of processes, resumable to the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_mllm.data.loading.naming import fetch
from lightning_mllm.errors import ConfigError, UserError
from lightning_mllm.store.manifest import describe_changes, digest, find_changes
from lightning_mllm.store.seeds import python_random
from lightning_mllm.types import MultimodalBatch, Sample

MEGA_BATCH = 50  # global batches within which samples are sorted by length; more saves padding, less is more random

Key = tuple[int, int]  # epoch and sample index
Collate = Callable[[Sequence[tuple[int, Sample]]], MultimodalBatch]


@dataclass(frozen=True)
class SampleSize:
    """What is known of a sample before it is opened."""

    id: str
    images: int
    characters: int


def check_batch_sizes(world_size: int, **sizes: int) -> None:
    """Refuse batches that processes can't share.

    Raises:
        ConfigError: A size is no positive multiple of the number of processes.
    """
    for name, size in sizes.items():
        if size < 1 or size % world_size:
            raise ConfigError(
                f"{name} is {size}, shared by {world_size} processes: it must be a positive multiple of "
                f"{world_size}. Use e.g. {max(1, round(size / world_size)) * world_size}."
            )


class GlobalBatchSampler:
    """Yields this process's share of each global batch, as lists of (epoch, index).

    Args:
        sizes: Of all samples.
        batch_size: Samples of a global batch, over all processes.
        training: Shuffle by `seed` and epoch, and give each process at least one sample of each batch (repeating some
            of an incomplete last one), so that all take the same number of steps. Otherwise the samples stand in
            their order, and each is yielded once over all processes.
        group_by_length: In training, put samples of like length into a batch, those with and without images apart.
        reshuffle: Whether the order changes with the epoch.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.

    Attributes:
        epoch: Epoch whose batches are yielded.
        start: Number of batches to leave out at the start of the next iteration.

    Raises:
        ConfigError: The batch size is not a positive multiple of the number of processes.
    """

    def __init__(
        self,
        sizes: Sequence[SampleSize],
        batch_size: int,
        *,
        training: bool,
        group_by_length: bool = False,
        reshuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(
                f"The batch size {batch_size} is shared by {world_size} processes, so it must be a positive multiple "
                f"of {world_size}; use e.g. {max(1, round(batch_size / world_size)) * world_size}."
            )
        self._sizes, self._batch_size, self._training = sizes, batch_size, training
        self._group_by_length, self._reshuffle, self._seed = group_by_length, reshuffle and training, seed
        self._rank, self._world_size = rank, world_size
        self.epoch = self.start = 0
        lines = (f"{size.id}\t{size.images}\t{size.characters}" for size in sizes)
        self._digest = digest(["\n".join(lines)])

    @property
    def sampler(self) -> GlobalBatchSampler:
        """Itself: Lightning calls `batch_sampler.sampler.set_epoch`."""
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What the global batches depend on; of the samples, their ids and sizes, in their order."""
        return {
            "batch_size": self._batch_size,
            "seed": self._seed,
            "group_by_length": self._group_by_length,
            "number_of_samples": len(self._sizes),
            "samples": self._digest,
        }

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are yielded next."""
        self.epoch = epoch if self._reshuffle else 0

    def __len__(self) -> int:
        count, rest = divmod(len(self._sizes), self._batch_size)
        return count + (1 if self._share(range(rest)) else 0)

    def __iter__(self) -> Iterator[list[Key]]:
        start, self.start = self.start, 0
        epoch = self.epoch
        shares = (self._share(batch) for batch in self.global_batches(epoch)[start:])
        yield from ([(epoch, index) for index in share] for share in shares if share)

    def global_batches(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch over all processes; only the last may be incomplete."""
        order = list(range(len(self._sizes)))
        if not self._training:
            return _chop(order, self._batch_size)
        generator = python_random(self._seed, epoch)
        generator.shuffle(order)
        if not self._group_by_length:
            return _chop(order, self._batch_size)
        full: list[list[int]] = []
        rest: list[int] = []
        for has_images in (True, False):
            group = [index for index in order if (self._sizes[index].images > 0) == has_images]
            whole = len(group) - len(group) % self._batch_size
            full += self._grouped(group[:whole])
            rest += group[whole:]
        *mixed, last = _chop(rest, self._batch_size) or [[]]
        full += mixed
        if len(last) == self._batch_size:
            full.append(last)
            last = []
        generator.shuffle(full)
        return full + ([last] if last else [])

    def _grouped(self, indices: list[int]) -> list[list[int]]:
        batches = []
        for mega in _chop(indices, MEGA_BATCH * self._batch_size):
            mega.sort(key=lambda index: (self._sizes[index].images, self._sizes[index].characters), reverse=True)
            batches += _chop(mega, self._batch_size)
        return batches

    def _share(self, batch: Sequence[int]) -> list[int]:
        """Return this process's part: contiguous, and as even as can be."""
        count, rank, world = len(batch), self._rank, self._world_size
        if self._training and 0 < count < world:
            return [batch[rank % count]]
        return list(batch[count * rank // world : count * (rank + 1) // world])


def _chop(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


class _Keys(Dataset[Key]):
    """Hands out each key as it is: samples are fetched with their batch."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __getitem__(self, key: Key) -> Key:
        return key

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True)
class _Refusal:
    """Why there is no batch: from a worker process, an exception would come with its traceback as its message."""

    error: UserError


class _Batches:
    """Makes the batch of some keys, or says why it can't."""

    def __init__(self, samples: Sequence[Sample], collator: Collate) -> None:
        self._samples, self._collator = samples, collator

    def __call__(self, keys: Sequence[Key]) -> MultimodalBatch | _Refusal:
        try:
            return self._collator([(epoch, fetch(self._samples, index)) for epoch, index in keys])
        except UserError as error:
            return _Refusal(error)


class BatchLoader:
    """Loads batches, in this process or in workers, and draws nothing from the global random state.

    It holds a torch DataLoader but is none: Lightning replaces the sampler of those it is given.
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
            generator=torch.Generator().manual_seed(0),  # seeds the workers, which draw no random numbers
        )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[MultimodalBatch]:
        yield from self._batches()

    def _batches(self) -> Iterator[MultimodalBatch]:
        """Yield the batches; raise what kept one from being made.

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
        # A generator, so this runs when the first batch is asked for: Lightning makes it before it sets the epoch.
        if not (self._resumes and self._epoch == self.batch_sampler.epoch):
            self._epoch, self._handed_out = self.batch_sampler.epoch, 0
        self._resumes = False
        self.batch_sampler.start = self._handed_out
        for batch in self._batches():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how many of its batches were handed out, and what they were made from."""
        return {"epoch": self._epoch, "batches": self._handed_out, **self.batch_sampler.options}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batches that were handed out, if the next iteration is of the same epoch.

        Raises:
            ConfigError: The batches have different settings, so that samples would be repeated or left out.
        """
        now = self.batch_sampler.options
        if changes := find_changes({name: state[name] for name in now}, now):
            raise ConfigError(
                f"The checkpoint's batches were created with different settings: {describe_changes(changes)}. "
                "Training would repeat some samples of the epoch and leave out others. Resume with the same data "
                "and options, or start a new run from the checkpoint's weights."
            )
        self._epoch, self._handed_out, self._resumes = state["epoch"], state["batches"], True


def limit_samples(samples: Sequence[Sample], limit: int | float, batch_size: int) -> Sequence[Sample]:
    """Return the samples of the batches that one of the Trainer's limits lets through."""
    batches = math.ceil(len(samples) / batch_size)
    taken = min(limit, batches) if isinstance(limit, int) else int(limit * batches)  # as Lightning counts
    return samples[: taken * batch_size]
