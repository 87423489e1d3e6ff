"""Looks at many image files at set-up, without decoding them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.images.files import inspect_image_file
from lightning_mllm.data.images.geometry import Size
from lightning_mllm.progress import track

_CHUNK = 256  # files that one thread looks at in one go: a task per file takes twice the time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InspectedFiles:
    """What is found of image files without decoding them, in arrays.

    Attributes:
        sizes: Width and height of the pictures, EXIF rotation applied, shape (files, 2); 0 for
            files that can't be used.
        problems: Number of a file -> what is wrong with it.
        animated: Numbers of the files of which only the first frame is used.
    """

    sizes: NDArray[np.int32]
    problems: dict[int, str]
    animated: list[int]

    def take(self, numbers: NDArray[np.integer]) -> InspectedFiles:
        """Return what was found of some of the files, in their order."""
        problems = {}
        if self.problems:
            for place in np.flatnonzero(np.isin(numbers, list(self.problems))).tolist():
                problems[place] = self.problems[int(numbers[place])]
        animated = np.flatnonzero(np.isin(numbers, self.animated)).tolist()
        return InspectedFiles(self.sizes[numbers], problems, animated)

    def warn_of_animated(self, paths: Sequence[str]) -> None:
        """Say that only the first frames of animated images are used."""
        if self.animated:
            logger.warning(
                "%d animated images: only the first frame is used (e.g. %s)",
                len(self.animated),
                min(Path(paths[number]) for number in self.animated),
            )


def inspect_image_files(paths: Sequence[str]) -> InspectedFiles:
    """Check image files at set-up (see `inspect_image_file`), some of them at a time."""
    sizes = np.zeros((len(paths), 2), np.int32)
    problems: dict[int, str] = {}
    animated = []

    def inspect_chunk(start: int) -> list[str | tuple[Size, bool]]:
        return [inspect_image_file(Path(path)) for path in paths[start : start + _CHUNK]]

    starts = range(0, len(paths), _CHUNK)
    with ThreadPoolExecutor(max_workers=8) as pool:
        chunks = track(
            pool.map(inspect_chunk, starts), f"Image files, {_CHUNK} at a time", len(starts)
        )
        for number, result in enumerate(chain.from_iterable(chunks)):
            if isinstance(result, str):
                problems[number] = result
                continue
            sizes[number], is_animated = result
            if is_animated:
                animated.append(number)
    return InspectedFiles(sizes, problems, animated)


def look_at_image_files(paths: Iterable[Path]) -> tuple[dict[Path, Size], dict[Path, str]]:
    """Check image files as `inspect_image_files` does, and warn of animated ones.

    Returns:
        Path -> size of the picture, EXIF rotation applied, for sound files; and path -> what is
        wrong, for the others.
    """
    unique = sorted(set(paths))
    texts = list(map(str, unique))
    found = inspect_image_files(texts)
    found.warn_of_animated(texts)
    sizes: dict[Path, Size] = {}
    for number, path in enumerate(unique):
        if number not in found.problems:
            width, height = found.sizes[number].tolist()
            sizes[path] = width, height
    return sizes, {unique[number]: problem for number, problem in found.problems.items()}
