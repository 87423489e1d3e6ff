"""Samples whose pictures stand for those of all: each number of views, and extreme sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.data.images.geometry import Size
from lightning_mllm.data.loading.picture_sizes import PictureSizes


def choose_extreme_pictures(
    pictures: PictureSizes, kept: NDArray[np.int64], count_views: Callable[[Size], int]
) -> list[int]:
    """Return the first sample of each numbers of views, and of extreme sizes and proportions.

    Args:
        pictures: The pictures of the samples.
        kept: The samples to choose from, ascending; each may have several pictures, or none.
        count_views: Counts the views that the processor makes of a picture of a size.
    """
    views, _ = pictures.measure(count_views)
    counts = np.bincount(pictures.owners, minlength=pictures.count)
    chosen = set()
    without = kept[counts[kept] == 0]
    chosen.update(without[:1].tolist())
    alone = counts[pictures.owners] == 1
    _, first = np.unique(views[alone], return_index=True)
    chosen.update(pictures.owners[alone][first].tolist())
    chosen.update(_choose_among_several(pictures, views, ~alone))
    if len(pictures.owners):
        width, height = pictures.sizes.astype(np.float64).T
        for measure in (width / height, height / width, width * height, -width * height):
            chosen.add(int(pictures.owners[np.argmax(measure)]))
    return sorted(chosen)


def _choose_among_several(
    pictures: PictureSizes, views: NDArray[np.int64], places: NDArray[np.bool_]
) -> list[int]:
    """Return the first sample of each numbers of views, of those with several pictures."""
    owners, numbers = pictures.owners[places], views[places]
    samples, starts = np.unique(owners, return_index=True)
    first: dict[tuple[int, ...], int] = {}
    for sample, own in zip(samples.tolist(), np.split(numbers, starts[1:]), strict=False):
        first.setdefault(tuple(sorted(own.tolist())), sample)
    return list(first.values())
