"""Intervals of what is made of sums over samples, where the samples themselves are not kept.

Each sample belongs to one of a few groups, and sums are kept per group. A statistic of the sums, such as an inner
product of two means, is then taken again without each group in turn: the delete-a-group jackknife (Kott, Journal of
Official Statistics 17, 2001), here for groups of unequal sizes (Busing, Meijer and van der Leeden, Statistics and
Computing 9, 1999). It is sound for smooth statistics of means, and for means over pairs of samples, which a bootstrap
of the pairs is not: pairs that share a sample are not independent. Intervals are of 95 %, with the t distribution.

Which group a sample is in depends on a seed and its picture's name: what is found of one picture is not independent.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student  # type: ignore[import-untyped]

from lightning_mllm.store.seeds import rank_of

Floats = NDArray[np.float64]

GROUPS = "groups of pictures"  # what the intervals are over


def lowest(names: Iterable[str], size: int, seed: int) -> set[str]:
    """Draw some of the names: those with the lowest numbers, so that adding names only ever takes others' places."""
    return set(sorted(names, key=lambda name: rank_of(name, seed))[:size])


def group_of(name: str, seed: int, groups: int) -> int:
    """Return the group that a picture is in, from 0 to `groups` - 1."""
    return rank_of(f"group/{name}", seed) % groups


def jackknife(value: Floats, without: Floats, sizes: Floats) -> Floats:
    """Return value, ends of the 95 % interval and N, (..., 4); NaN at the ends where there is one group.

    Args:
        value: (...), the statistic of all samples.
        without: (groups, ...), the same without each group.
        sizes: (groups,), samples in each group, none of them 0.
    """
    n, number = sizes.sum(), len(sizes)
    ends = np.full((2, *value.shape), np.nan)
    if number > 1:
        shares = (n / sizes).reshape(-1, *(1,) * value.ndim)
        pseudo = shares * value - (shares - 1) * without
        estimate = number * value - ((1 - 1 / shares) * without).sum(0)
        variance = ((pseudo - estimate) ** 2 / (shares - 1)).mean(0)
        half = student.ppf(0.975, number - 1) * np.sqrt(variance)
        ends = np.stack([value - half, value + half])
    counted = np.where(np.isnan(value), 0.0, n)
    return np.stack([value, *ends, counted], axis=-1)


def jackknife_of_means(sums: Floats, sizes: Floats) -> Floats:
    """Return value, interval and N of the mean over samples of what each has, (..., 4).

    Args:
        sums: (groups, ...), over the samples of each group.
        sizes: (groups,), samples in each group; 0 for one without any.
    """
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    total, n = sums.sum(0), sizes.sum()
    left = (n - sizes).reshape(-1, *(1,) * total.ndim)
    without = np.divide(total - sums, left, out=np.full_like(sums, np.nan), where=left > 0)
    return jackknife(total / n, without, sizes)
