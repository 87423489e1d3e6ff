"""Pictures that are there more than once: splits keep them together, or are not independent."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, combinations
from pathlib import Path

from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.types import Sample

_TAIL = 1024  # bytes at the end of a file, which tell nearly all files of one length apart
_PIECE = 256  # files that one thread looks at in one go
_SHOWN = 5  # samples that a warning names

logger = logging.getLogger(__name__)


def find_equal_files(files: Iterable[Path]) -> list[list[Path]]:
    """Return the groups of files of equal bytes, in the order of the files; those that are alone are left out.

    Whole files are read only where length and end are alike. A file that can't be read is like no other.
    """
    groups = [[*dict.fromkeys(files)]]
    with ThreadPoolExecutor(max_workers=8) as pool:
        for look in (_length, _tail, _digest):
            every = [file for group in groups for file in group]
            pieces = [every[start : start + _PIECE] for start in range(0, len(every), _PIECE)]
            keys = chain(*pool.map(partial(_look, look), pieces))
            parts: dict[Hashable, list[Path]] = {}
            for number, group in enumerate(groups):
                for file in group:
                    parts.setdefault((number, next(keys)), []).append(file)
            groups = [part for part in parts.values() if len(part) > 1]
    return groups


def link_samples(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the groups of samples that share a picture, also by way of others; each sample is in one, by its index.

    A picture is shared if it is the same file, a file of equal bytes, or has the same name (`Sample.picture`).
    """
    pictures = [_pictures(sample) for sample in samples]
    copies = _copies(pictures)
    parents = list(range(len(samples)))
    first: dict[Path | str, int] = {}

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for index, found in enumerate(pictures):
        for each in found:
            earlier, later = sorted((root(first.setdefault(copies.get(each, each), index)), root(index)))
            parents[later] = earlier
    groups: dict[int, list[int]] = {}
    for index in range(len(samples)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def warn_of_shared_pictures(splits: Mapping[Split, Sequence[Sample]], new: Collection[Split]) -> None:
    """Warn of samples with a picture that another split has, too: the same file, equal bytes, or the same `picture`.

    Pictures that are made on demand are not compared.

    Args:
        splits: Split -> samples, the training split first.
        new: The splits that were not compared before.
    """
    listed = {
        split: [sample for sample in samples if isinstance(sample, Sample)]  # what is none is a bad row
        for split, samples in splits.items()
        if not isinstance(samples, LazySamples)
    }
    pairs = [pair for pair in combinations(listed, 2) if {*pair} & {*new}]
    if not pairs:
        return
    pictures = {split: [_pictures(sample) for sample in samples] for split, samples in listed.items()}
    copies = _copies(chain(*pictures.values()))
    places: dict[Split, dict[Path | str, str]] = {}  # split -> picture -> the first sample with it
    for split, samples in listed.items():
        places[split] = {}
        for sample, found in zip(samples, pictures[split], strict=True):
            for each in found:
                places[split].setdefault(copies.get(each, each), sample.id)
    for one, other in pairs:
        shared: dict[str, str] = {}
        for sample, found in zip(listed[other], pictures[other], strict=True):
            if match := next((name for each in found if (name := places[one].get(copies.get(each, each)))), None):
                shared[sample.id] = match
        if shared:
            examples = [f"{name} (in {one}: {match})" for name, match in list(shared.items())[:_SHOWN]]
            logger.warning(
                "%d of the %d samples of the %r split have a picture that the %r split has, too, so that scores on it "
                "say less about new pictures: %s%s. Keep all samples of a picture in one split.",
                *(len(shared), len(listed[other]), other, one),
                *(", ".join(examples), ", ..." if len(shared) > _SHOWN else ""),
            )


def _pictures(sample: Sample) -> set[Path | str]:
    """Return what its pictures are known by."""
    named = {sample.picture} if sample.picture is not None else set()
    return {image for image in sample.images if isinstance(image, Path)} | named


def _copies(pictures: Iterable[set[Path | str]]) -> dict[Path | str, Path | str]:
    """Return file -> the first one of equal bytes, where there are several."""
    files = (each for found in pictures for each in found if isinstance(each, Path))
    return {file: group[0] for group in find_equal_files(files) for file in group}


def _look(look: Callable[[Path], Hashable], files: Sequence[Path]) -> list[Hashable]:
    """Look at each file; one that can't be read is like no other."""
    found: list[Hashable] = []
    for file in files:
        try:
            found.append(look(file))
        except OSError:
            found.append(file)
    return found


def _length(file: Path) -> Hashable:
    return os.stat(file).st_size


def _tail(file: Path) -> Hashable:
    with open(file, "rb", buffering=0) as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
        return stream.read(_TAIL)


def _digest(file: Path) -> Hashable:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
