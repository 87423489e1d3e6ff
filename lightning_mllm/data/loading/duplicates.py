"""Pictures that are there more than once: splits keep them together, or are not independent."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, combinations, islice
from pathlib import Path

from lightning_mllm.data.images.files import list_image_files
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.sample_errors import join_first
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.types import Sample

_TAIL = 1024  # bytes at the end of a file, which tell nearly all files of one length apart
_CHUNK = 256  # files that one thread looks at in one go
_SHOWN = 5  # samples that a warning names

Picture = Path | str  # a file, or the name that samples give it

logger = logging.getLogger(__name__)


def find_duplicate_files(files: Iterable[Path]) -> list[list[Path]]:
    """Return the groups of two or more files of equal bytes, in the order of the files.

    Whole files are read only where length and end are equal. A file that can't be read equals no
    other.
    """
    groups = [[*dict.fromkeys(files)]]
    with ThreadPoolExecutor(max_workers=8) as pool:
        for measure in (_measure_length, _read_tail, _digest):
            listed = list(chain(*groups))
            starts = range(0, len(listed), _CHUNK)
            chunks = [listed[start : start + _CHUNK] for start in starts]
            keys = chain(*pool.map(partial(_measure_files, measure), chunks))
            parts: dict[Hashable, list[Path]] = {}
            for number, group in enumerate(groups):
                for file in group:
                    parts.setdefault((number, next(keys)), []).append(file)
            groups = [part for part in parts.values() if len(part) > 1]
    return groups


def find_first_duplicates(files: Iterable[Path]) -> dict[Path, Path]:
    """Return file -> the first file of equal bytes, for all files that have a copy."""
    copies = {}
    for group in find_duplicate_files(files):
        copies.update(dict.fromkeys(group, group[0]))
    return copies


def link_duplicate_samples(samples: Sequence[Sample]) -> list[list[int]]:
    """Return the groups of samples that share a picture, directly or through other samples.

    Each sample is in one group, by its index. A picture is shared if it is the same file, a file
    of equal bytes, or has the same name (`Sample.picture`).
    """
    pictures = _identify_pictures(samples)
    parents = list(range(len(samples)))
    first: dict[Picture, int] = {}

    def find_root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for index, found in enumerate(pictures):
        for picture in found:
            one, other = find_root(first.setdefault(picture, index)), find_root(index)
            parents[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for index in range(len(samples)):
        groups.setdefault(find_root(index), []).append(index)
    return list(groups.values())


def warn_of_duplicate_pictures(
    splits: Mapping[Split, Sequence[Sample]], new: Collection[Split]
) -> None:
    """Warn of samples with a picture that another split has too.

    Shared is the same file, equal bytes, or the same `picture`. Pictures that are made on demand
    are not compared.

    Args:
        splits: Split -> samples, the training split first.
        new: The splits that were not compared before.
    """
    listed = {}
    for split, samples in splits.items():
        if not isinstance(samples, LazySamples):  # what is not a sample is a bad row
            listed[split] = [sample for sample in samples if isinstance(sample, Sample)]
    pairs = [pair for pair in combinations(listed, 2) if {*pair} & {*new}]
    if not pairs:
        return
    pictures = iter(_identify_pictures(list(chain(*listed.values()))))
    shown = {split: list(islice(pictures, len(samples))) for split, samples in listed.items()}
    for one, other in pairs:
        shared = _find_shared(listed[one], shown[one], listed[other], shown[other])
        if shared:
            examples = [f"{name} (in {one}: {match})" for name, match in shared.items()]
            logger.warning(
                "%d of the %d samples of the %r split have a picture that the %r split has, too, "
                "so that scores on it say less about new pictures: %s. Keep all samples of a "
                "picture in one split.",
                len(shared),
                len(listed[other]),
                other,
                one,
                join_first(examples, _SHOWN),
            )


def _find_shared(
    samples: Sequence[Sample],
    pictures: Sequence[Collection[Picture]],
    others: Sequence[Sample],
    other_pictures: Sequence[Collection[Picture]],
) -> dict[str, str]:
    """Return id of another sample -> id of the first sample with one of its pictures."""
    owners: dict[Picture, str] = {}
    for sample, found in zip(samples, pictures, strict=True):
        for picture in found:
            owners.setdefault(picture, sample.id)
    shared: dict[str, str] = {}
    for sample, found in zip(others, other_pictures, strict=True):
        matches = [owners[picture] for picture in found if owners.get(picture)]
        if matches:
            shared[sample.id] = matches[0]
    return shared


def _identify_pictures(samples: Sequence[Sample]) -> list[list[Picture]]:
    """Return by what each sample's pictures are known: equal for files of equal bytes."""
    files = [list_image_files(sample) for sample in samples]
    copies = find_first_duplicates(chain(*files))
    pictures: list[list[Picture]] = []
    for sample, own in zip(samples, files, strict=True):
        known: list[Picture] = [copies.get(file, file) for file in own]
        if sample.picture is not None:
            known.append(sample.picture)
        pictures.append(known)
    return pictures


def _measure_files(measure: Callable[[Path], Hashable], files: Sequence[Path]) -> list[Hashable]:
    """Measure each file; one that can't be read is measured by its path, unlike any other."""
    found: list[Hashable] = []
    for file in files:
        try:
            found.append(measure(file))
        except OSError:
            found.append(file)
    return found


def _measure_length(file: Path) -> Hashable:
    return os.stat(file).st_size


def _read_tail(file: Path) -> Hashable:
    with open(file, "rb", buffering=0) as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
        return stream.read(_TAIL)


def _digest(file: Path) -> Hashable:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
