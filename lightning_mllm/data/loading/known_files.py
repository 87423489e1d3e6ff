"""Image files that were looked at before: those of the same size and time need no second look."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.images.inspection import InspectedFiles, inspect_image_files
from lightning_mllm.data.loading.text_array import TextArray, unique_texts

_CHUNK = 256  # files that one thread looks up in one go
_SETTLED = 2_000_000_000  # nanoseconds after which a change shows in a file's time


@dataclass(frozen=True)
class KnownFiles:
    """What was found of image files, and by what they are known to be the same.

    Attributes:
        paths: The files, none of them twice.
        states: Size in bytes and time of the last change in nanoseconds, shape (files, 2); -1 for
            a file that is not there, or was changed just now.
        sizes: Width and height of the pictures, shape (files, 2); 0 for files that are to be looked
            at each time.
    """

    paths: TextArray
    states: NDArray[np.int64]
    sizes: NDArray[np.int32]

    @classmethod
    def note(cls, paths: TextArray, found: InspectedFiles, inspected: int) -> KnownFiles:
        """Note what was found of the first files, and the states of all.

        Args:
            paths: The files, none of them twice.
            found: What was found.
            inspected: How many of the files it was found of.
        """
        sizes = np.zeros((len(paths), 2), np.int32)
        sizes[:inspected] = found.sizes
        sizes[found.animated] = 0
        states = look_up_files(paths)
        states[states[:, 1] > time.time_ns() - _SETTLED] = -1
        return cls(paths, states, sizes)

    def find_changed(self) -> NDArray[np.int64]:
        """Return the numbers of the files that are not what they were."""
        return np.flatnonzero((look_up_files(self.paths) != self.states).any(axis=1))

    def inspect(self, files: TextArray) -> InspectedFiles:
        """Look at those of some files that are new, or not what they were."""
        _, (own, asked) = unique_texts(self.paths, files)
        places = np.full(len(self.paths) + len(files), -1)
        places[own] = np.arange(len(own))
        sizes = np.zeros((len(files), 2), np.int32)
        is_known = places[asked] >= 0
        sizes[is_known] = self.sizes[places[asked][is_known]]
        states = np.full((len(files), 2), -1)
        states[is_known] = self.states[places[asked][is_known]]
        same = (look_up_files(files) == states).all(axis=1) & (states >= 0).all(axis=1)
        new = np.flatnonzero(~(same & (sizes > 0).all(axis=1)))
        found = inspect_image_files(files.take(new))
        sizes[new] = found.sizes
        problems = {int(new[number]): problem for number, problem in found.problems.items()}
        return InspectedFiles(sizes, problems, [int(new[number]) for number in found.animated])


def look_up_files(paths: Sequence[str]) -> NDArray[np.int64]:
    """Return size and time of files, shape (files, 2); -1 for those that are not there."""

    def look_up_chunk(start: int) -> list[int]:
        found: list[int] = []
        for path in paths[start : start + _CHUNK]:
            try:
                status = os.stat(path)
            except (OSError, ValueError):
                found += (-1, -1)
            else:
                found += (status.st_size, status.st_mtime_ns)
        return found

    with ThreadPoolExecutor(max_workers=8) as pool:
        chunks = pool.map(look_up_chunk, range(0, len(paths), _CHUNK))
        states = np.fromiter(chain.from_iterable(chunks), np.int64, 2 * len(paths))
    return states.reshape(-1, 2)
