"""Brings the two samples of a pair together, which need not come in one batch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError
from lightning_mllm.types import Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplePairs:
    """Samples and their partners, row by row.

    Attributes:
        clean: The samples that name a partner.
        corrupted: Their partners.
    """

    clean: MultimodalBatch
    corrupted: MultimodalBatch

    def __len__(self) -> int:
        return len(self.clean)

    def take(self, rows: Sequence[int]) -> SamplePairs:
        """Return some of the pairs."""
        return SamplePairs(self.clean.take(rows), self.corrupted.take(rows))


class PairFinder:
    """Finds pairs in batches, and holds samples whose partner is still to come."""

    def __init__(self) -> None:
        self._partners: dict[str, str] = {}  # of all samples, where that is known
        self.forget()

    def forget(self) -> None:
        """Forget all batches; what is known of all samples stays."""
        self._waiting: dict[str, MultimodalBatch] = {}  # id -> a batch of this sample, on the CPU
        self._wanted: dict[str, str] = {}  # partner -> the waiting sample that names it
        self._finished: set[str] = set()  # partners of samples that need no work

    @property
    def waiting(self) -> list[str]:
        """Ids of samples that name a partner which has not come."""
        return list(self._wanted.values())

    def check(self, samples: Iterable[Sample], name: str) -> None:
        """Refuse samples that make no pairs, and note those that do.

        Args:
            samples: All that will come.
            name: Name of the analysis, for messages.

        Raises:
            ConfigError: There is no pair, or a sample that is named is not there, has been named
                already, or names a partner itself.
        """
        ids: set[str] = set()
        partners: dict[str, str] = {}
        for sample in samples:
            ids.add(sample.id)
            if sample.partner is not None:
                partners[sample.id] = sample.partner
        if not partners:
            raise ConfigError(
                f"{name} compares the two samples of pairs, but none of the {len(ids)} samples "
                "names a partner. Use data with pairs, such as WorldPairs, or give one row of each "
                "pair the other's id as its `partner`."
            )
        _check_partners(partners)
        for sample_id, partner in partners.items():
            if partner not in ids:
                raise ConfigError(
                    f"Sample {sample_id!r} names {partner!r} as its partner, which is not among "
                    f"the {len(ids)} samples that are analysed. Correct the id, or raise the limit "
                    "of batches, so that both are there."
                )
        if alone := len(ids) - 2 * len(partners):
            logger.warning("%s: %d of %d samples are in no pair.", name, alone, len(ids))
        self._partners = partners

    def find(self, batch: MultimodalBatch, done: Collection[str]) -> list[SamplePairs]:
        """Return the pairs that are complete with a batch.

        Args:
            batch: Samples, some of which name a partner.
            done: Ids of samples whose pair needs no more work.

        Raises:
            ConfigError: A sample is named twice, or names a partner itself.
        """
        partners = batch.partners or (None,) * len(batch)
        named = {own: other for own, other in zip(batch.sample_ids, partners, strict=True) if other}
        _check_partners(named)
        device = batch.input_ids.device
        rows = {sample_id: row for row, sample_id in enumerate(batch.sample_ids)}
        together: list[tuple[int, int]] = []
        found: list[SamplePairs] = []
        for own, other in named.items():
            if own in done:
                self._finished.add(other)
                self._waiting.pop(other, None)
            elif other in rows:
                together.append((rows[own], rows[other]))
            elif other in self._waiting:
                clean = batch.take([rows[own]])
                found.append(SamplePairs(clean, self._waiting.pop(other).to(device)))
            else:
                self._wanted[other] = own
                self._waiting[own] = batch.take([rows[own]]).to("cpu")
        in_pairs = {*named, *named.values()}
        for own in (each for each in rows if each not in in_pairs):
            if own in self._wanted:
                clean = self._waiting.pop(self._wanted.pop(own)).to(device)
                found.append(SamplePairs(clean, batch.take([rows[own]])))
            elif own not in self._finished and self._may_be_named(own):
                self._waiting[own] = batch.take([rows[own]]).to("cpu")
        if together:
            first, second = ([*each] for each in zip(*together, strict=True))
            found.insert(0, SamplePairs(batch.take(first), batch.take(second)))
        return found

    def _may_be_named(self, sample_id: str) -> bool:
        return not self._partners or sample_id in self._partners.values()


def _check_partners(partners: dict[str, str]) -> None:
    """Refuse samples that are in two pairs.

    Args:
        partners: Sample -> the partner that it names.
    """
    owners: dict[str, str] = {}
    for own, other in partners.items():
        if other in partners:
            raise ConfigError(
                f"Sample {own!r} names {other!r} as its partner, which names {partners[other]!r}. "
                "Let only one sample of a pair, the clean one, name the other."
            )
        if other in owners:
            raise ConfigError(
                f"Samples {owners[other]!r} and {own!r} both name {other!r} as their partner. Give "
                "each pair samples of its own."
            )
        owners[other] = own
