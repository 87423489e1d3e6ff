"""How much of what sub-networks keep is the same: IoU per pair, matrix and layer, beside chance.

Pairs are put together by what they have in common: tokens of one kind or of two, one task or two. Masks are rebuilt
from calibrations, those of one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any, TypeVar

import numpy as np
from scipy.stats import t as student  # type: ignore[import-untyped]

from lightning_mllm.analysis.core.result import Floats, Plot
from lightning_mllm.analysis.subnetwork.calibration import Calibration
from lightning_mllm.analysis.subnetwork.mask import chance_iou, iou
from lightning_mllm.analysis.subnetwork.matrices import matrices
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.statistics.interval import STATISTICS

MEAN = "mean"  # over the matrices of a layer, each of which counts as much
CHANCE = "chance"

Key = tuple[str, str]  # of a set: task, tokens
Pair = tuple[Key, Key]
Folds = Mapping[Key, Sequence[Calibration]]
_T = TypeVar("_T")


def overlaps(backbone: Backbone, sets: Folds) -> tuple[Floats, dict[str, tuple[Any, ...]]]:
    """Return the IoU of all pairs of sets, (matrix, pair, layer, statistic), and its coordinates.

    First of the pairs stand the means over those of a group, then chance, then each for itself. `n` counts samples:
    those of one fold of the smallest set.

    Args:
        backbone: The model that was calibrated.
        sets: The calibrations.

    Raises:
        CheckpointError: Its weights are others.
    """
    pairs = pairs_of(sets)
    groups = {name: [pair for pair in pairs if group_of(pair) == name] for name in sorted(set(map(group_of, pairs)))}
    found, chance, names, layers = _measure(backbone, sets, pairs)
    means = [_mean(found[:, [pairs.index(pair) for pair in own]], 1) for own in groups.values()]
    found = np.concatenate([*(each[:, None] for each in means), chance[:, None], found], axis=1)
    found = np.concatenate([_mean(found, 0)[None], found])
    samples = {pair: min(len(each.sample_ids) for key in pair for each in sets[key]) for pair in pairs}
    every = min(len(each.sample_ids) for folds in sets.values() for each in folds)
    counts = [*(min(samples[pair] for pair in own) for own in groups.values()), every, *samples.values()]
    coords = {
        "matrix": (MEAN, *names),
        "pair": (*groups, CHANCE, *(name_of(pair) for pair in pairs)),
        "layer": tuple(layers),
        "statistic": STATISTICS,
    }
    n = np.broadcast_to(np.array(counts, dtype=np.float64)[None, :, None], found.shape[:3])
    return np.stack([*_with_interval(found), n], axis=-1), coords


def pairs_of(sets: Mapping[Key, Sequence[Any]]) -> list[Pair]:
    """Return the pairs of different sets and, of sets that have several folds, each with itself."""
    pairs = combinations_with_replacement(sets, 2)
    return [(one, two) for one, two in pairs if one != two or len(sets[one]) > 1]


def matched(folds: Mapping[Key, Sequence[_T]], pair: Pair) -> list[tuple[_T, _T]]:
    """Return which folds of a pair are compared: none twice, so that the comparisons are independent."""
    one, two = folds[pair[0]], folds[pair[1]]
    if pair[0] != pair[1]:
        return list(zip(one, two, strict=False))
    return list(zip(one[0::2], one[1::2], strict=False))


def name_of(pair: Pair) -> str:
    """Return what a pair is called."""
    return " / ".join(f"{task} ({tokens})" for task, tokens in pair)


def group_of(pair: Pair) -> str:
    """Return what a pair has in common."""
    (one, its), (two, other) = pair
    return f"{' / '.join(sorted({its, other}))}, {'one task' if one == two else 'two tasks'}"


def plots(pairs: Sequence[str]) -> tuple[Plot, ...]:
    """Return how overlaps are drawn: the groups of pairs, and chance."""
    return (
        Plot(
            "iou",
            "lines",
            x="layer",
            y="pair",
            shown={pair: pair for pair in pairs[: pairs.index(CHANCE) + 1]},
            fixed={},
            xlabel="Layer",
            label="IoU of kept weights",
            title="What two sub-networks share",
            over="sets of samples",
        ),
    )


def _measure(backbone: Backbone, sets: Folds, pairs: Sequence[Pair]) -> tuple[Floats, Floats, list[str], list[int]]:
    """Return the IoU of pairs, (matrix, pair, layer, fold), that of chance, (matrix, layer, fold), names and layers."""
    for folds in sets.values():
        for calibration in folds:
            calibration.check_fits(backbone)
    linear = matrices(backbone)
    names, layers = list(dict.fromkeys(m.name for m in linear)), list(dict.fromkeys(m.layer for m in linear))
    found = np.full((len(names), len(pairs), len(layers), max(map(len, sets.values()))), np.nan)
    chance = np.full((found.shape[0], *found.shape[2:]), np.nan)
    for matrix, module in linear.items():
        kept = {
            key: [each.pruning.kept(matrix, module.weight, each.squares[matrix]) for each in folds]
            for key, folds in sets.items()
        }
        name, layer = names.index(matrix.name), layers.index(matrix.layer)
        for p, pair in enumerate(pairs):
            for fold, (one, two) in enumerate(matched(kept, pair)):
                found[name, p, layer, fold] = iou(one, two)
        sparsity = 1 - float(next(iter(kept.values()))[0].double().mean())  # one pruning: that of all
        chance[name, layer, 0] = chance_iou(sparsity, sparsity)
    return found, chance, names, layers


def _with_interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the mean over the last axis and the ends of its 95 % t interval, NaN of fewer than two numbers."""
    mean, count = _mean(values, -1), (~np.isnan(values)).sum(axis=-1)
    squares = _mean((values - mean[..., None]) ** 2, -1)
    several = count > 1
    free = np.where(several, count - 1, 1)
    reach = np.where(several, student.ppf(0.975, free) * np.sqrt(squares / free), np.nan)
    return mean, mean - reach, mean + reach


def _mean(values: Floats, axis: int) -> Floats:
    """Return the mean of the numbers that there are; NaN of none."""
    there = ~np.isnan(values)
    total, count = np.where(there, values, 0.0).sum(axis=axis), there.sum(axis=axis)
    means: Floats = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return means
