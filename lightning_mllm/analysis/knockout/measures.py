"""The numbers of blocks: mean changes, flips, margins, and all this as a share of what the ceiling has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_mllm.statistics.interval import STATISTICS
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Draws,
    Statistic,
    difference,
    estimate,
    mean,
    median,
    ratio_of_means,
    share,
    share_difference,
    share_ratio,
)

MEASURES = (
    "mean_change_percent",  # the paper's: the mean of the questions' ratios
    "change_of_mean_percent",  # the ratio of the means
    "median_change_percent",
    "logprob_change",
    "flip_rate",
    "margin_change",
    "change_of_ceiling_percent",  # of the first measure, as a share of what the ceiling has
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

Cells = Mapping[str, Floats]  # column -> (questions, blocks, windows)


def flow_numbers(cells: Cells, fair: Cells, ceiling: Cells, pairs: Sequence[tuple[int, int]], draws: Draws) -> Floats:
    """Return (blocks, ceiling and contrasts, windows, measures, statistics) of (questions, blocks, windows) cells.

    Args:
        cells: Column -> numbers.
        fair: The same, without those that count in no contrast.
        ceiling: Of the ceiling, with one block.
        pairs: Blocks that are contrasted.
        draws: Of the bootstrap.
    """
    with_ceiling = {column: np.concatenate([each, ceiling[column]], axis=1) for column, each in cells.items()}
    questions, blocks, windows = with_ceiling["p_before"].shape
    flat = {column: each.reshape(questions, -1) for column, each in with_ceiling.items()}
    above = {column: np.tile(each[:, 0], blocks) for column, each in ceiling.items()}
    own = [estimate(statistic, values, draws) for statistic, values in _statistics(flat)]
    own.insert(MEASURES.index("flip_rate"), share(flat["flipped"], draws.pictures))
    own += _of_ceiling(flat, above, draws)
    parts = [np.stack(own, axis=1).reshape(blocks, windows, len(MEASURES), len(STATISTICS))]
    parts[0][-1, :, -1, 1:3] = parts[0][-1, :, -1, :1]  # flips of the ceiling itself
    for pair in pairs:
        ours, theirs = ({column: each[:, block] for column, each in fair.items()} for block in pair)
        for column in COLUMNS:
            neither = np.isnan(ours[column]) | np.isnan(theirs[column])
            ours[column], theirs[column] = (np.where(neither, np.nan, each[column]) for each in (ours, theirs))
        both = zip(_statistics(ours), _statistics(theirs), strict=True)
        found = [difference(a, b, values, draws) for (a, values), (b, _) in both]
        flips = share_difference(ours["flipped"], theirs["flipped"], draws.pictures)
        found.insert(MEASURES.index("flip_rate"), flips)
        found += [np.where([True, True, True, False], np.nan, np.zeros_like(flips))] * (len(MEASURES) - len(found))
        parts.append(np.stack(found, axis=1)[None])
    return np.concatenate(parts)


def _statistics(cells: Cells) -> list[tuple[Statistic, Floats]]:
    """Return the statistic of each measure that is neither a share nor a part of the ceiling, and its values."""
    change, before, after = cells["relative_change_percent"], cells["p_before"], cells["p_after"]
    margin = cells["margin_after"] - cells["margin_before"]
    ratio = ratio_of_means(after, before)
    return [
        (mean(change), change),
        (lambda weights: 100 * (ratio(weights) - 1), change),
        (median(change), change),
        (mean(cells["logprob_change"]), cells["logprob_change"]),
        (mean(margin), margin),
    ]


def _of_ceiling(cells: Cells, ceiling: Cells, draws: Draws) -> list[Floats]:
    """Return change and flips in percent of those of the ceiling, of (questions, numbers) cells.

    The change has no interval where the ceiling's own holds 0: no interval would be bounded.
    """
    change, above = (each["relative_change_percent"] for each in (cells, ceiling))
    found = estimate(ratio_of_means(100 * change, above), change + above, draws)
    _, low, high, _ = estimate(mean(above), change + above, draws).T
    found[:, 1:3] = np.where(((low > 0) | (high < 0))[:, None], found[:, 1:3], np.nan)
    return [found, share_ratio(cells["flipped"], ceiling["flipped"], draws.pictures, 100)]
