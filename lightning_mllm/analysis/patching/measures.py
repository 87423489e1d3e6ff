"""The numbers of patches: restored and lost shares, flips, and what attribution says of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lightning_mllm.statistics.missing import Floats, divide_unless_missing
from lightning_mllm.statistics.picture_bootstrap import (
    BootstrapDraws,
    Statistic,
    bootstrap_difference,
    bootstrap_estimate,
    bootstrap_mean,
    bootstrap_ratio_of_means,
    bootstrap_share,
    bootstrap_share_difference,
)

MEASURES = (
    "share",  # restored by denoising, lost by noising: the ratio of means over pairs
    "logit_change",  # what it is a share of D's change
    "logprob_change",  # of the source's answer
    "flip_rate",
)
ESTIMATES = (
    "estimated_share",  # by attribution patching
    "estimate_error",  # mean size of estimate minus effect, as a share
    "estimate_correlation",  # with the effect, over pairs
)
COLUMNS = ("effect", "whole", "logprob_change", "flipped", "estimate")

PatchCells = Mapping[str, Floats]  # column -> (pairs, numbers)


def patch_measures(cells: PatchCells, draws: BootstrapDraws, *, estimates: bool) -> Floats:
    """Return the statistics of patches, (numbers, measures, 4).

    Args:
        cells: `effect`: how far D moves towards the source's; `whole`: how far the source's is off;
            `logprob_change`, `flipped`, and `estimate`, of the effect. NaN where nothing is
            patched.
        draws: Resamples of the pairs.
        estimates: Whether there are estimates.
    """
    found = [
        bootstrap_estimate(statistic, values, draws)
        for statistic, values in _statistics(cells, estimates=estimates)
    ]
    found.insert(MEASURES.index("flip_rate"), bootstrap_share(cells["flipped"], draws.pictures))
    return np.stack(found, axis=1)


def patch_contrast(
    ours: PatchCells, theirs: PatchCells, draws: BootstrapDraws, *, estimates: bool
) -> Floats:
    """Return the differences between patches, on the same pairs, (numbers, measures, 4)."""
    lacking = np.isnan(ours["effect"]) | np.isnan(theirs["effect"])
    both = []
    for cells in (ours, theirs):
        both.append({name: np.where(lacking, np.nan, own) for name, own in cells.items()})
    first, second = (_statistics(cells, estimates=estimates) for cells in both)
    found = []
    for (our_statistic, values), (their_statistic, _) in zip(first, second, strict=True):
        found.append(bootstrap_difference(our_statistic, their_statistic, values, draws))
    flips = bootstrap_share_difference(both[0]["flipped"], both[1]["flipped"], draws.pictures)
    found.insert(MEASURES.index("flip_rate"), flips)
    return np.stack(found, axis=1)


def _statistics(cells: PatchCells, *, estimates: bool) -> list[tuple[Statistic, Floats]]:
    """Return statistic and values of each measure, but of flips."""
    effect, whole = cells["effect"], cells["whole"]
    found = [
        (bootstrap_ratio_of_means(effect, whole), effect),
        (bootstrap_mean(effect), effect),
        (bootstrap_mean(cells["logprob_change"]), cells["logprob_change"]),
    ]
    if estimates:
        estimate = cells["estimate"]
        error = np.abs(estimate - effect)
        found += [
            (bootstrap_ratio_of_means(estimate, whole), estimate),
            (bootstrap_ratio_of_means(error, whole), error),
            (_bootstrap_correlation(estimate, effect), error),
        ]
    return found


def _bootstrap_correlation(ours: Floats, theirs: Floats) -> Statistic:
    """Return the correlation over pairs of (pairs, numbers) values; NaN where one is constant."""
    there = ~(np.isnan(ours) | np.isnan(theirs))
    one, two = (np.where(there, each, 0.0) for each in (ours, theirs))
    counts = there.astype(np.float64)

    def compute(weights: Floats) -> Floats:
        n = weights @ counts
        means = [divide_unless_missing(weights @ each, n) for each in (one, two)]
        products = [
            divide_unless_missing(weights @ (a * b), n)
            for a, b in ((one, two), (one, one), (two, two))
        ]
        shared = products[0] - means[0] * means[1]
        spread = (products[1] - means[0] ** 2) * (products[2] - means[1] ** 2)
        varies = spread > 1e-12 * products[1] * products[2]
        return np.where(varies, shared / np.sqrt(np.where(varies, spread, 1.0)), np.nan)

    return compute
