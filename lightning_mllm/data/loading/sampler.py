"""Which samples make which batch: the same global batches for any number of processes.

Training resumes at the batch where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.loading.sample_sizes import SampleSize, SampleSizes
from lightning_mllm.errors import ConfigError
from lightning_mllm.store.seeds import python_random
from lightning_mllm.types import Sample

# global batches within which samples are sorted by length: more saves padding, less is more random
MEGA_BATCH = 50

Key = tuple[int, int]  # epoch and sample index


def check_sampler_batches(world_size: int, **sizes: int) -> None:
    """Refuse batches that processes can't share.

    Raises:
        ConfigError: A size is not a positive multiple of the number of processes.
    """
    for name, size in sizes.items():
        if size < 1 or size % world_size:
            raise ConfigError(
                f"{name} is {size}, shared by {world_size} processes: it must be a positive "
                f"multiple of {world_size}. Use e.g. "
                f"{max(1, round(size / world_size)) * world_size}."
            )


class GlobalBatchSampler:
    """Yields this process's share of each global batch, as lists of (epoch, index).

    Args:
        sizes: The sizes of all samples.
        batch_size: Samples of a global batch, over all processes.
        training: Whether to shuffle by `seed` and epoch, and to give each process at least one
            sample of each batch (repeating some of an incomplete last one), so that all take the
            same number of steps. Otherwise samples keep their order, and each is yielded once over
            all processes.
        group_by_length: Whether a training batch holds samples of similar length, either all with
            images or all without.
        reshuffle: Whether the order changes with the epoch.
        seed: Seed of the order.
        rank: The number of this process.
        world_size: How many processes there are.

    Attributes:
        epoch: The epoch whose batches are yielded.
        start: How many batches the next iteration skips at its start.

    Raises:
        ConfigError: The batch size is not a positive multiple of the number of processes.
    """

    def __init__(
        self,
        sizes: SampleSizes | Sequence[SampleSize],
        batch_size: int,
        *,
        training: bool,
        group_by_length: bool = False,
        reshuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_sampler_batches(world_size, batch_size=batch_size)
        self._sizes = sizes if isinstance(sizes, SampleSizes) else SampleSizes.of(sizes)
        self._batch_size = batch_size
        self._training = training
        self._group_by_length, self._seed = group_by_length, seed
        self._reshuffle = reshuffle and training
        self._rank, self._world_size = rank, world_size
        self.epoch = self.start = 0

    @property
    def sampler(self) -> GlobalBatchSampler:
        """Itself: Lightning calls `batch_sampler.sampler.set_epoch`."""
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What the global batches depend on; samples count by ids and sizes, in their order."""
        return {
            "batch_size": self._batch_size,
            "seed": self._seed,
            "group_by_length": self._group_by_length,
            "number_of_samples": len(self._sizes),
            "samples": self._sizes.digest,
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
        for batch in self._order_batches(epoch)[start:]:
            share = self._share(batch.tolist())
            if share:
                yield [(epoch, index) for index in share]

    def global_batches(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch over all processes; only the last may be incomplete."""
        return [batch.tolist() for batch in self._order_batches(epoch)]

    def _order_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch as arrays: a list of a million numbers takes 40 MB."""
        if not self._training:
            return _cut(np.arange(len(self._sizes)), self._batch_size)
        shuffled = list(range(len(self._sizes)))
        generator = python_random(self._seed, epoch)
        generator.shuffle(shuffled)
        order = np.array(shuffled, np.int64)
        if not self._group_by_length:
            return _cut(order, self._batch_size)
        full: list[NDArray[np.int64]] = []
        rest: list[NDArray[np.int64]] = []
        has_images = self._sizes.images[order] > 0
        for group in (order[has_images], order[~has_images]):
            whole = len(group) - len(group) % self._batch_size
            full += self._sort_by_length(group[:whole])
            rest.append(group[whole:])
        *mixed, last = _cut(np.concatenate(rest), self._batch_size) or [order[:0]]
        full += mixed
        if len(last) == self._batch_size:
            full.append(last)
            last = order[:0]
        generator.shuffle(full)
        return full + ([last] if len(last) else [])

    def _sort_by_length(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return batches of samples of similar length, longest first within each mega-batch."""
        batches = []
        for mega in _cut(indices, MEGA_BATCH * self._batch_size):
            # stable, so that equally long samples stay in their order
            order = np.lexsort((-self._sizes.characters[mega], -self._sizes.images[mega]))
            batches += _cut(mega[order], self._batch_size)
        return batches

    def _share(self, batch: Sequence[int]) -> list[int]:
        """Return this process's part of a batch: contiguous, and as even as possible.

        Where each process has an even part of a whole evaluation batch, it has one of the last
        batch too, so that two samples that follow each other, as of a pair, stay together.
        """
        count, world_size = len(batch), self._world_size
        if self._training and 0 < count < world_size:
            return [batch[self._rank % count]]
        together = 2 if not self._training and self._batch_size // world_size % 2 == 0 else 1
        units = math.ceil(count / together)
        start = together * (units * self._rank // world_size)
        end = together * (units * (self._rank + 1) // world_size)
        return list(batch[start:end])


def _cut(indices: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut an array into pieces of a size; the last may be shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def limit_sampling(
    samples: Sequence[Sample], limit: int | float, batch_size: int
) -> Sequence[Sample]:
    """Return the samples of the batches that one of the Trainer's limits lets through."""
    batches = math.ceil(len(samples) / batch_size)
    # as Lightning counts
    taken = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    return samples[: taken * batch_size]
