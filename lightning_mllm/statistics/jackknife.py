"""Intervals of what is made of sums over samples, where the samples themselves are not kept.

Each sample belongs to one of a few groups, and sums are kept per group. A statistic of the sums,
such as an inner product of two means, is computed again without each group in turn: the
delete-a-group jackknife (Kott, Journal of Official Statistics 17, 2001), here for groups of unequal
sizes (Busing, Meijer and van der Leeden, Statistics and Computing 9, 1999). It is sound for smooth
statistics of means, and for means over pairs of samples. A bootstrap of the pairs is not sound,
because pairs that share a sample are not independent. The intervals use the t distribution.

The group of a sample depends on a seed and on its picture's name, because samples of one picture
are not independent.
"""

from __future__ import annotations

import numpy as np

from lightning_mllm.statistics.interval import interval_t_quantile, stack_interval
from lightning_mllm.statistics.missing import Floats, divide_unless_missing
from lightning_mllm.store.seeds import seed_rank_of

GROUPS = "groups of pictures"  # what the intervals are over


def jackknife_group(name: str, seed: int, groups: int) -> int:
    """Return the group that a picture is in, from 0 to `groups` - 1."""
    return seed_rank_of(f"group/{name}", seed) % groups


def jackknife(value: Floats, without: Floats, sizes: Floats) -> Floats:
    """Return the statistics, (..., 4); the ends are NaN where there is only one group.

    Args:
        value: (...), computed from all samples.
        without: (groups, ...), computed without each group.
        sizes: (groups,), samples in each group, none of them 0.
    """
    n, number = sizes.sum(), len(sizes)
    ends = np.full((2, *value.shape), np.nan)
    if number > 1:
        shares = _align(n / sizes, value)
        pseudo = shares * value - (shares - 1) * without
        estimate = number * value - ((1 - 1 / shares) * without).sum(0)
        variance = ((pseudo - estimate) ** 2 / (shares - 1)).mean(0)
        half = interval_t_quantile(number - 1) * np.sqrt(variance)
        ends = np.stack([value - half, value + half])
    counted = np.where(np.isnan(value), 0.0, n)
    return stack_interval(value, ends, counted)


def jackknife_of_means(sums: Floats, sizes: Floats) -> Floats:
    """Return the statistics of means over samples, (..., 4).

    Args:
        sums: (groups, ...), over the samples of each group.
        sizes: (groups,), samples in each group; 0 for one without any.
    """
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    total, n = sums.sum(0), sizes.sum()
    without = divide_unless_missing(total - sums, _align(n - sizes, total))
    return jackknife(total / n, without, sizes)


def _align(numbers: Floats, values: Floats) -> Floats:
    """Return (groups,) numbers as (groups, 1, ...), so that they broadcast with (groups, ...)."""
    return numbers.reshape(-1, *(1,) * values.ndim)
