"""How much of what sub-networks keep is the same: IoU per pair, matrix and layer, beside chance.

Pairs are grouped by what they have in common: the kind of tokens, and whether they are of one task.
Masks are rebuilt from calibrations, one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.subnetwork.calibration import Calibration
from lightning_mllm.analysis.subnetwork.matrices import Matrix, matrices
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, VALUE, mean_interval, stack_interval
from lightning_mllm.statistics.missing import Floats, mean_unless_missing

MEAN = "mean"  # over the matrices of a layer, which all count as much
CHANCE = "chance"

Key = tuple[str, str]  # of a set: task, tokens
Pair = tuple[Key, Key]
Folds = Mapping[Key, Sequence[Calibration]]
_T = TypeVar("_T")


def overlaps(backbone: Backbone, sets: Folds) -> tuple[Floats, dict[str, tuple[Any, ...]]]:
    """Return the IoU of all pairs of sets, (matrix, pair, layer, statistic), and its coordinates.

    The first pairs are the means over groups of pairs, then comes chance, then each pair for
    itself. `n` counts samples: those of one fold of the smallest set.

    Args:
        backbone: The model that was calibrated.
        sets: Task and tokens -> the calibrations of its folds.

    Raises:
        CheckpointError: The model has other weights.
    """
    for folds in sets.values():
        for calibration in folds:
            calibration.check_fits(backbone)
    linear = matrices(backbone)
    names = list(dict.fromkeys(matrix.name for matrix in linear))
    layers = list(dict.fromkeys(matrix.layer for matrix in linear))
    pairs = overlap_pairs(sets)
    groups = _group_pairs(pairs)
    of_pairs, of_chance = _measure(linear, sets, pairs, names, layers)
    rows = [_present_mean(of_pairs[:, own], 1)[:, None] for own in groups.values()]
    found = np.concatenate([*rows, of_chance[:, None], of_pairs], axis=1)
    found = np.concatenate([_present_mean(found, 0)[None], found])
    mean, ends = mean_interval(found)
    counts = _count_samples(sets, pairs, groups)
    n = np.broadcast_to(np.array(counts, dtype=np.float64)[None, :, None], mean.shape)
    coords = {
        "matrix": (MEAN, *names),
        "pair": (*groups, CHANCE, *map(name_overlap_pair, pairs)),
        "layer": tuple(layers),
        "statistic": STATISTICS,
    }
    return stack_interval(mean, ends, n), coords


def iou(one: Tensor, two: Tensor) -> float:
    """Return the intersection over union of two bool tensors; NaN if neither keeps a weight."""
    union = int((one | two).sum())
    return int((one & two).sum()) / union if union else float("nan")


def chance_iou(one: float, two: float) -> float:
    """Return the IoU of two random masks of these sparsities; (1 - s) / (1 + s) if both are s."""
    both = (1 - one) * (1 - two)
    union = 2 - one - two - both
    return both / union if union else float("nan")


def overlap_pairs(sets: Mapping[Key, Sequence[Any]]) -> list[Pair]:
    """Return the pairs of different sets and, of sets that have several folds, each with itself."""
    pairs = combinations_with_replacement(sets, 2)
    return [(one, two) for one, two in pairs if one != two or len(sets[one]) > 1]


def match_overlap_folds(folds: Mapping[Key, Sequence[_T]], pair: Pair) -> list[tuple[_T, _T]]:
    """Return which folds of a pair are compared.

    No fold is compared twice, so that the comparisons are independent.
    """
    one, two = folds[pair[0]], folds[pair[1]]
    if pair[0] != pair[1]:
        return list(zip(one, two, strict=False))
    return list(zip(one[0::2], one[1::2], strict=False))


def name_overlap_pair(pair: Pair) -> str:
    """Return the name of a pair."""
    return " / ".join(f"{task} ({tokens})" for task, tokens in pair)


def describe_overlap_pair(pair: Pair) -> str:
    """Return what the two sets of a pair have in common."""
    (first_task, first_tokens), (second_task, second_tokens) = pair
    tokens = " / ".join(sorted({first_tokens, second_tokens}))
    return f"{tokens}, {'one task' if first_task == second_task else 'two tasks'}"


def make_overlap_result(
    name: str,
    values: Floats,
    coords: Mapping[str, tuple[Any, ...]],
    n: int,
    settings: Mapping[str, Any],
) -> AnalysisResult:
    """Return the result of `overlaps`.

    Args:
        name: Name of the analysis.
        values: What `overlaps` returns.
        coords: The coordinates that it returns.
        n: How many samples were calibrated on.
        settings: What decided the values.
    """
    plots, headline = _make_plots(coords["pair"]), _make_headline(values, coords)
    return AnalysisResult(name, values, tuple(coords), coords, n, settings, plots, headline)


def _make_plots(pairs: Sequence[str]) -> tuple[ResultPlot, ...]:
    """Return how overlaps are drawn: the groups of pairs, and chance."""
    return (
        ResultPlot(
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
            references=(CHANCE,),
        ),
    )


def _make_headline(values: Floats, coords: Mapping[str, tuple[Any, ...]]) -> Headline:
    """Return the IoU of the groups of pairs, and chance: mean, lowest and highest of the layers."""
    pairs, rows = coords["pair"], []
    for number, pair in enumerate(pairs[: pairs.index(CHANCE) + 1]):
        own = values[0, number]  # of the mean over matrices, (layers, statistics)
        if np.isnan(own[:, VALUE]).all():
            continue
        low, high = int(np.nanargmin(own[:, VALUE])), int(np.nanargmax(own[:, VALUE]))
        ends = [f"{format_estimate(own[at])} ({coords['layer'][at]})" for at in (low, high)]
        rows.append((pair, f"{np.nanmean(own[:, VALUE]):.2f}", *ends, format_count(own[0])))
    columns = ("pair", "mean", "lowest (layer)", "highest (layer)", "N")
    return Headline("IoU of the weights that two sub-networks keep.", columns, tuple(rows))


def _group_pairs(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    """Return what pairs have in common -> their places, sorted by name."""
    groups: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        groups.setdefault(describe_overlap_pair(pair), []).append(place)
    return dict(sorted(groups.items()))


def _count_samples(
    sets: Folds, pairs: Sequence[Pair], groups: Mapping[str, Sequence[int]]
) -> list[int]:
    """Return the samples of the smallest fold of each number: of groups, chance and pairs."""
    smallest: dict[Key, int] = {}
    for key, folds in sets.items():
        smallest[key] = min(len(calibration.sample_ids) for calibration in folds)
    of_pairs = [min(smallest[one], smallest[two]) for one, two in pairs]
    of_groups = []
    for places in groups.values():
        of_groups.append(min(of_pairs[place] for place in places))
    return [*of_groups, min(smallest.values()), *of_pairs]


def _measure(
    linear: Mapping[Matrix, nn.Linear],
    sets: Folds,
    pairs: Sequence[Pair],
    names: Sequence[str],
    layers: Sequence[int],
) -> tuple[Floats, Floats]:
    """Return the IoU of pairs, (names, pairs, layers, folds), and of chance, without pairs."""
    folds = max(map(len, sets.values()))
    of_pairs = np.full((len(names), len(pairs), len(layers), folds), np.nan)
    of_chance = np.full((len(names), len(layers), folds), np.nan)
    for matrix, module in track(linear.items(), "Overlaps of matrices"):
        name, layer = names.index(matrix.name), layers.index(matrix.layer)
        kept = {}
        for key, calibrations in sets.items():
            kept[key] = [each.kept(matrix, module.weight) for each in calibrations]
        for place, pair in enumerate(pairs):
            for fold, (one, two) in enumerate(match_overlap_folds(kept, pair)):
                of_pairs[name, place, layer, fold] = iou(one, two)
        first = next(iter(kept.values()))[0]  # all are pruned alike
        sparsity = 1 - float(first.double().mean())
        of_chance[name, layer, 0] = chance_iou(sparsity, sparsity)
    return of_pairs, of_chance


def _present_mean(values: Floats, axis: int) -> Floats:
    """Return the mean of the numbers that are there; NaN of none."""
    return mean_unless_missing(values, ~np.isnan(values), axis)
