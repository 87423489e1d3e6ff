"""Which samples make which batch: the same global batches for any number of processes.

Training resumes at the batch where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_mllm.errors import ConfigError
from lightning_mllm.store.manifest import manifest_digest
from lightning_mllm.store.seeds import python_random
from lightning_mllm.types import Sample

# global batches within which samples are sorted by length: more saves padding, less is more random
MEGA_BATCH = 50

Key = tuple[int, int]  # epoch and sample index


@dataclass(frozen=True)
class SampleSize:
    """What is known of a sample before its pictures are opened.

    Attributes:
        id: The id of the sample.
        images: How many images it has.
        characters: How many characters its texts have; 0 if it has a label.
    """

    id: str
    images: int
    characters: int


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
        check_sampler_batches(world_size, batch_size=batch_size)
        self._sizes, self._batch_size = sizes, batch_size
        self._training = training
        self._group_by_length, self._seed = group_by_length, seed
        self._reshuffle = reshuffle and training
        self._rank, self._world_size = rank, world_size
        self.epoch = self.start = 0
        lines = (f"{size.id}\t{size.images}\t{size.characters}" for size in sizes)
        self._digest = manifest_digest(["\n".join(lines)])

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
        for batch in self.global_batches(epoch)[start:]:
            share = self._share(batch)
            if share:
                yield [(epoch, index) for index in share]

    def global_batches(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch over all processes; only the last may be incomplete."""
        order = list(range(len(self._sizes)))
        if not self._training:
            return _cut(order, self._batch_size)
        generator = python_random(self._seed, epoch)
        generator.shuffle(order)
        if not self._group_by_length:
            return _cut(order, self._batch_size)
        full: list[list[int]] = []
        rest: list[int] = []
        for has_images in (True, False):
            group = [index for index in order if (self._sizes[index].images > 0) == has_images]
            whole = len(group) - len(group) % self._batch_size
            full += self._sort_by_length(group[:whole])
            rest += group[whole:]
        *mixed, last = _cut(rest, self._batch_size) or [[]]
        full += mixed
        if len(last) == self._batch_size:
            full.append(last)
            last = []
        generator.shuffle(full)
        return full + ([last] if last else [])

    def _sort_by_length(self, indices: list[int]) -> list[list[int]]:
        """Return batches of samples of similar length, longest first within each mega-batch."""
        batches = []
        for mega in _cut(indices, MEGA_BATCH * self._batch_size):
            mega.sort(key=self._measure, reverse=True)
            batches += _cut(mega, self._batch_size)
        return batches

    def _measure(self, index: int) -> tuple[int, int]:
        return self._sizes[index].images, self._sizes[index].characters

    def _share(self, batch: Sequence[int]) -> list[int]:
        """Return this process's part of a batch: contiguous, and as even as possible."""
        count, world_size = len(batch), self._world_size
        if self._training and 0 < count < world_size:
            return [batch[self._rank % count]]
        start = count * self._rank // world_size
        end = count * (self._rank + 1) // world_size
        return list(batch[start:end])


def _cut(indices: list[int], size: int) -> list[list[int]]:
    """Cut a list into pieces of a size; the last may be shorter."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def limit_sampling(
    samples: Sequence[Sample], limit: int | float, batch_size: int
) -> Sequence[Sample]:
    """Return the samples of the batches that one of the Trainer's limits lets through."""
    batches = math.ceil(len(samples) / batch_size)
    # as Lightning counts
    taken = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    return samples[: taken * batch_size]
