"""The numbers of blocks: mean changes, flips, margins, and each as a part of the ceiling's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_mllm.statistics.interval import ENDS, STATISTICS, N
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    BootstrapDraws,
    Statistic,
    bootstrap_difference,
    bootstrap_estimate,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_ratio_of_means,
    bootstrap_share,
    bootstrap_share_difference,
    bootstrap_share_ratio,
)

MEASURES = (
    "mean_change_percent",  # the paper's: the mean of the questions' ratios
    "change_of_mean_percent",  # the ratio of the means
    "median_change_percent",
    "logprob_change",
    "flip_rate",
    "margin_change",
    "change_of_ceiling_percent",  # the first measure, in percent of that of the ceiling
    "flips_of_ceiling_percent",
)
COLUMNS = (
    "relative_change_percent",
    "p_before",
    "p_after",
    "logprob_change",
    "flipped",
    "margin_before",
    "margin_after",
)
_FLIPS = MEASURES.index("flip_rate")

Cells = Mapping[str, Floats]  # column -> (questions, blocks, windows)


def flow_measures(
    cells: Cells,
    fair: Cells,
    ceiling: Cells,
    pairs: Sequence[tuple[int, int]],
    draws: BootstrapDraws,
) -> Floats:
    """Return the numbers of all blocks, of the ceiling and of contrasts between blocks.

    Args:
        cells: Column -> numbers, (questions, blocks, windows).
        fair: Cells as in `cells`, but NaN where a question counts in no contrast.
        ceiling: Cells of the ceiling, which are one block.
        pairs: Blocks that are contrasted.
        draws: Resamples of the questions.

    Returns:
        (blocks, ceiling and contrasts, windows, measures, statistics).
    """
    with_ceiling = {}
    for column, own in cells.items():
        with_ceiling[column] = np.concatenate([own, ceiling[column]], axis=1)
    questions, blocks, windows = with_ceiling["p_before"].shape
    flat = {column: own.reshape(questions, -1) for column, own in with_ceiling.items()}
    above = {column: np.tile(own[:, 0], blocks) for column, own in ceiling.items()}
    numbers = [
        bootstrap_estimate(statistic, values, draws) for statistic, values in _statistics(flat)
    ]
    numbers.insert(_FLIPS, bootstrap_share(flat["flipped"], draws.pictures))
    numbers += _relative_to_ceiling(flat, above, draws)
    stacked = np.stack(numbers, axis=1).reshape(blocks, windows, len(MEASURES), len(STATISTICS))
    stacked[-1, :, -1, ENDS] = stacked[-1, :, -1, :1]  # the ceiling's flips relative to itself
    contrasts = [_contrast(fair, *pair, draws)[None] for pair in pairs]
    return np.concatenate([stacked, *contrasts])


def _contrast(fair: Cells, first: int, second: int, draws: BootstrapDraws) -> Floats:
    """Return the differences between two blocks, (windows, measures, statistics)."""
    ours: dict[str, Floats] = {}
    theirs: dict[str, Floats] = {}
    for column in COLUMNS:
        left, right = fair[column][:, first], fair[column][:, second]
        lacking = np.isnan(left) | np.isnan(right)
        ours[column] = np.where(lacking, np.nan, left)
        theirs[column] = np.where(lacking, np.nan, right)
    numbers = []
    both = zip(_statistics(ours), _statistics(theirs), strict=True)
    for (our_statistic, values), (their_statistic, _) in both:
        numbers.append(bootstrap_difference(our_statistic, their_statistic, values, draws))
    flips = bootstrap_share_difference(ours["flipped"], theirs["flipped"], draws.pictures)
    numbers.insert(_FLIPS, flips)
    undefined = np.full_like(flips, np.nan)  # relative to the ceiling
    undefined[:, N] = 0
    numbers += [undefined] * (len(MEASURES) - len(numbers))
    return np.stack(numbers, axis=1)


def _statistics(cells: Cells) -> list[tuple[Statistic, Floats]]:
    """Return statistic and values of each measure, but of flips and those of the ceiling."""
    change, before, after = cells["relative_change_percent"], cells["p_before"], cells["p_after"]
    margin = cells["margin_after"] - cells["margin_before"]
    ratio = bootstrap_ratio_of_means(after, before)
    return [
        (bootstrap_mean(change), change),
        (lambda weights: 100 * (ratio(weights) - 1), change),
        (bootstrap_median(change), change),
        (bootstrap_mean(cells["logprob_change"]), cells["logprob_change"]),
        (bootstrap_mean(margin), margin),
    ]


def _relative_to_ceiling(cells: Cells, ceiling: Cells, draws: BootstrapDraws) -> list[Floats]:
    """Return change and flips in percent of those of the ceiling, of (questions, numbers) cells.

    The change has no interval where the ceiling's own holds 0: no interval would be bounded.
    """
    change, above = cells["relative_change_percent"], ceiling["relative_change_percent"]
    relative = bootstrap_estimate(
        bootstrap_ratio_of_means(100 * change, above), change + above, draws
    )
    _, low, high, _ = bootstrap_estimate(bootstrap_mean(above), change + above, draws).T
    bounded = (low > 0) | (high < 0)
    relative[:, ENDS] = np.where(bounded[:, None], relative[:, ENDS], np.nan)
    flips = bootstrap_share_ratio(cells["flipped"], ceiling["flipped"], draws.pictures, 100)
    return [relative, flips]
