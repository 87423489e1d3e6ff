"""Which files have equal bytes: whole files are read only where length and end are equal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.progress import track

_TAIL = 1024  # bytes at the end of a file, which tell nearly all files of one length apart
_CHUNK = 256  # files that one thread looks at in one go
_UNREADABLE = -1

Measure = Callable[[str], int]


def find_equal_files(paths: Sequence[str]) -> NDArray[np.int64]:
    """Return per file the number of the first file of equal bytes, which may be itself.

    A file that can't be read equals no other.

    Args:
        paths: The files, none of them twice.

    Returns:
        Shape (files,).
    """
    first = np.arange(len(paths))
    rest = first  # the files that may still have a copy
    groups = np.zeros(len(paths), np.int64)  # per file of the rest: equal so far
    with ThreadPoolExecutor(max_workers=8) as pool:
        for name, measure in (("lengths", _measure_length), ("ends", _read_tail), ("", _digest)):
            found = _measure_files(pool, measure, paths, rest, name)
            rest, groups = rest[found != _UNREADABLE], groups[found != _UNREADABLE]
            found = found[found != _UNREADABLE]
            values, found = np.unique(found, return_inverse=True)
            _, groups = np.unique(groups * len(values) + found, return_inverse=True)
            several = np.bincount(groups, minlength=1)[groups] > 1
            rest, groups = rest[several], groups[several]
    _, start, inverse = np.unique(groups, return_index=True, return_inverse=True)
    first[rest] = rest[start][inverse]
    return first


def find_duplicate_files(files: Iterable[Path]) -> list[list[Path]]:
    """Return the groups of two or more files of equal bytes, in the order of the files."""
    unique = [*dict.fromkeys(files)]
    groups: dict[int, list[Path]] = {}
    for file, first in zip(unique, find_equal_files(list(map(str, unique))).tolist(), strict=True):
        groups.setdefault(first, []).append(file)
    return [group for group in groups.values() if len(group) > 1]


def find_first_duplicates(files: Iterable[Path]) -> dict[Path, Path]:
    """Return file -> the first file of equal bytes, for all files that have a copy."""
    copies = {}
    for group in find_duplicate_files(files):
        copies.update(dict.fromkeys(group, group[0]))
    return copies


def _measure_files(
    pool: ThreadPoolExecutor,
    measure: Measure,
    paths: Sequence[str],
    chosen: NDArray[np.int64],
    name: str,
) -> NDArray[np.int64]:
    """Return a number for each chosen file: equal numbers for equal files."""

    def measure_chunk(start: int) -> list[int]:
        numbers = []
        for index in chosen[start : start + _CHUNK].tolist():
            try:
                numbers.append(measure(paths[index]))
            except (OSError, ValueError):
                numbers.append(_UNREADABLE)
        return numbers

    starts = range(0, len(chosen), _CHUNK)
    chunks = pool.map(measure_chunk, starts)
    if name:
        chunks = track(chunks, f"Looking for copies: {name} of files", len(starts))
    return np.fromiter(chain.from_iterable(chunks), np.int64, len(chosen))


def _measure_length(file: str) -> int:
    return os.stat(file).st_size


def _read_tail(file: str) -> int:
    with open(file, "rb", buffering=0) as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
        return _number(hashlib.blake2b(stream.read(_TAIL), digest_size=8).digest())


def _digest(file: str) -> int:
    with open(file, "rb") as stream:
        return _number(hashlib.file_digest(stream, "sha256").digest())


def _number(digest: bytes) -> int:
    """Return the first 63 bits of a hash: files of one length and end, and of one number."""
    return int.from_bytes(digest[:8], "big") >> 1
