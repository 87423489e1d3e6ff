"""Pictures that are there more than once: splits keep them together, or are not independent."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.loading.equal_files import find_equal_files
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.sample_errors import join_first
from lightning_mllm.data.loading.splits import ItemGroups, Split
from lightning_mllm.data.loading.text_array import TextArray, TextArrayBuilder, unique_texts
from lightning_mllm.types import LazyImage, Sample

_SHOWN = 5  # samples that a warning names

logger = logging.getLogger(__name__)


class PictureCollector:
    """Takes in what samples show, one after another."""

    def __init__(self) -> None:
        self._count = 0
        self._files, self._owners = TextArrayBuilder(), array("q")
        self._names, self._name_owners = array("q"), array("q")
        self._ids, self._partners = array("q"), array("q")  # by hashes
        self._partner_owners = array("q")

    def add(self, sample: object) -> None:
        """Take in the next sample; what is not a sample shows nothing."""
        if isinstance(sample, Sample):
            for image in sample.images:
                if isinstance(image, Path):
                    self._files.append(str(image))
                    self._owners.append(self._count)
                elif isinstance(image, LazyImage) and image.content:
                    self._names.append(hash(image.content))
                    self._name_owners.append(self._count)
            if sample.picture is not None:
                self._names.append(hash(sample.picture))
                self._name_owners.append(self._count)
            if sample.partner is not None:
                self._partners.append(hash(sample.partner))
                self._partner_owners.append(self._count)
        self._ids.append(hash(sample.id) if isinstance(sample, Sample) else 0)
        self._count += 1

    def build(self) -> ShownPictures:
        """Return what the samples show; afterwards no more can be taken in."""
        return ShownPictures(
            self._count,
            self._files.build(),
            np.frombuffer(self._owners, np.int64),
            np.frombuffer(self._names, np.int64),
            np.frombuffer(self._name_owners, np.int64),
            self._find_pairs(),
        )

    def _find_pairs(self) -> NDArray[np.int64]:
        """Return the samples that name a partner, with that partner, (2, pairs)."""
        ids, partners = (np.frombuffer(each, np.int64) for each in (self._ids, self._partners))
        if not len(partners):
            return np.empty((2, 0), np.int64)
        known, first = np.unique(ids, return_index=True)
        places = np.searchsorted(known, partners).clip(max=len(known) - 1)
        found = known[places] == partners
        owners = np.frombuffer(self._partner_owners, np.int64)
        return np.stack([owners[found], first[places[found]]])


@dataclass(frozen=True)
class ShownPictures:
    """What samples show: image files, and the names that they give their picture.

    Attributes:
        count: How many samples these are.
        files: The paths of their image files, shape (files,).
        owners: The sample of each file, ascending.
        names: The names of their pictures, by hashes.
        name_owners: The sample of each name, ascending.
        pairs: Samples that name a partner, and that partner, (2, pairs).
    """

    count: int
    files: TextArray
    owners: NDArray[np.int64]
    names: NDArray[np.int64]
    name_owners: NDArray[np.int64]
    pairs: NDArray[np.int64]

    @classmethod
    def of(cls, samples: Iterable[object]) -> ShownPictures:
        """Return what samples show; what is not a sample shows nothing."""
        collector = PictureCollector()
        for sample in samples:
            collector.add(sample)
        return collector.build()

    def select(self, kept: NDArray[np.int64]) -> ShownPictures:
        """Return what some of the samples show, by their indices in ascending order."""
        if len(kept) == self.count:
            return self
        numbers = np.full(self.count, -1)
        numbers[kept] = np.arange(len(kept))
        owners, named = numbers[self.owners], numbers[self.name_owners]
        files = self.files.take(np.flatnonzero(owners >= 0))
        names = self.names[named >= 0]
        pairs = numbers[self.pairs]
        pairs = pairs[:, (pairs >= 0).all(0)]
        return ShownPictures(len(kept), files, owners[owners >= 0], names, named[named >= 0], pairs)

    def link(self) -> ItemGroups:
        """Return the groups of samples that share a picture or name each other, also by others."""
        # scipy takes a while to import, and few datasets need it
        from scipy.sparse import coo_array  # type: ignore[import-untyped]  # noqa: PLC0415
        from scipy.sparse.csgraph import (  # type: ignore[import-untyped]  # noqa: PLC0415
            connected_components,
        )

        ((owners, pictures),) = _identify_pictures([self])
        nodes = self.count + int(pictures.max(initial=-1)) + 1
        ends = np.concatenate([[owners, self.count + pictures], self.pairs], axis=1)
        edges = (np.ones(ends.shape[1], bool), (ends[0], ends[1]))
        _, parts = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)
        _, first, inverse = np.unique(parts[: self.count], return_index=True, return_inverse=True)
        return ItemGroups(first[inverse])


def link_duplicate_samples(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the groups of samples that share a picture or are partners, also through others.

    Each sample is in one group, by its index. A picture is shared if it is the same file, a file
    of equal bytes, or has the same name (`Sample.picture`).
    """
    return list(ShownPictures.of(samples).link())


def warn_of_duplicate_pictures(
    splits: Mapping[Split, Sequence[Sample]],
    new: Collection[Split],
    known: Mapping[Split, ShownPictures] | None = None,
) -> None:
    """Warn of samples with a picture that another split has too.

    Shared is the same file, equal bytes, or the same `picture`. Pictures that are made on demand
    are not compared.

    Args:
        splits: Split -> samples, the training split first.
        new: The splits that were not compared before.
        known: Split -> what its samples show, where that is known.
    """
    compared = [split for split in splits if not isinstance(splits[split], LazySamples)]
    pairs = [pair for pair in combinations(compared, 2) if {*pair} & {*new}]
    if not pairs:
        return
    shown = [(known or {}).get(split) or ShownPictures.of(splits[split]) for split in compared]
    pictures = dict(zip(compared, _identify_pictures(shown), strict=True))
    for one, other in pairs:
        shared = _find_shared(*pictures[one], *pictures[other])
        if not shared:
            continue
        examples = []
        for index, match in list(shared.items())[: _SHOWN + 1]:
            examples.append(f"{splits[other][index].id} (in {one}: {splits[one][match].id})")
        logger.warning(
            "%d of the %d samples of the %r split have a picture that the %r split has, too, "
            "so that scores on it say less about new pictures: %s. Keep all samples of a "
            "picture in one split.",
            len(shared),
            len(splits[other]),
            other,
            one,
            join_first(examples, _SHOWN),
        )


Owned = tuple[NDArray[np.int64], NDArray[np.int64]]  # samples, and a picture of each


def _find_shared(
    owners: NDArray[np.int64],
    pictures: NDArray[np.int64],
    other_owners: NDArray[np.int64],
    other_pictures: NDArray[np.int64],
) -> dict[int, int]:
    """Return another sample -> the first sample with its first picture that is shared."""
    found, places = np.unique(pictures, return_index=True)
    matches = np.flatnonzero(np.isin(other_pictures, found))
    shared: dict[int, int] = {}
    for match in matches.tolist():
        place = places[np.searchsorted(found, other_pictures[match])]
        shared.setdefault(int(other_owners[match]), int(owners[place]))
    return shared


def _identify_pictures(shown: Sequence[ShownPictures]) -> list[Owned]:
    """Return by what each sample's pictures are known: equal for files of equal bytes.

    Of a sample files come before the name.
    """
    paths, numbers = unique_texts(*(each.files for each in shown))
    equal = find_equal_files(paths)
    _, named = np.unique(np.concatenate([each.names for each in shown]), return_inverse=True)
    ends = np.cumsum([len(each.names) for each in shown])[:-1]
    identified = []
    for each, files, own in zip(shown, numbers, np.split(named, ends), strict=True):
        owners = np.concatenate([each.owners, each.name_owners])
        pictures = np.concatenate([equal[files], len(paths) + own])
        order = np.argsort(owners, kind="stable")
        identified.append((owners[order], pictures[order]))
    return identified
