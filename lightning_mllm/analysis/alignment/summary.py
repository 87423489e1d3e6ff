"""From sums per group of samples to curves over layers with their intervals, and to scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from lightning_mllm.alignment_names import (
    ALL_TOKENS,
    SCORE_NAMES,
    TOKEN_MODES,
    VECTOR_MODES,
    ScoreName,
)
from lightning_mllm.analysis.alignment.drawn_pairs import COMPARISONS, mean_of_drawn_pairs
from lightning_mllm.analysis.alignment.group_sums import (
    GroupCurve,
    GroupSums,
    divide_sums,
    inner_product_of_sums,
)
from lightning_mllm.analysis.alignment.headline import make_alignment_headline
from lightning_mllm.analysis.alignment.kinds import curves_of_kinds, kinds_in_sums
from lightning_mllm.analysis.alignment.measures import (
    PAIRED,
    PAIRED_INPUT,
    alignment_measure_names,
)
from lightning_mllm.analysis.alignment.plots import make_alignment_plots
from lightning_mllm.analysis.alignment.similarity import (
    name_similarity_measures,
    similarity_measure_names,
)
from lightning_mllm.analysis.core.result import AnalysisResult
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.analysis.forward.observe import ObservedState
from lightning_mllm.errors import DataError
from lightning_mllm.statistics.interval import STATISTICS, missing_interval

HALVES = "halves"
_OF_ONE_SAMPLE = {"ima_same_layer": PAIRED, "ima_input": PAIRED_INPUT}


@dataclass(frozen=True)
class AlignmentScore:
    """An implicit alignment score.

    Attributes:
        value: The score, a cosine similarity.
        low_95: Low end of the score's 95 % interval.
        high_95: High end of the score's 95 % interval.
        n: Number of samples that the score is made of.
    """

    value: float
    low_95: float
    high_95: float
    n: int


def alignment_score(
    result: AnalysisResult,
    name: ScoreName = "ima_input",
    mode: str = "avg",
    tokens: str = ALL_TOKENS,
) -> AlignmentScore:
    """Return the mean over layers of a curve of all pairs of samples.

    The layers are 0 to L - 1, as in the paper.

    Args:
        result: The result of an `Alignment`.
        name: `ima_input` compares textual tokens with the perceptual ones that enter the LLM,
            `ima_same_layer` with those of the same layer.
        mode: How the tokens of a pair are compared; one of `similarity.MODES`.
        tokens: `all`, or `without sinks`.

    Raises:
        DataError: The result has no such score.
    """
    scores = result.settings.get("found", {}).get("scores", {}).get(tokens, {})
    full_name = f"{name} {mode}"
    if full_name not in scores:
        raise DataError(
            f"Result {result.name!r} has no score {full_name!r} of tokens {tokens!r}; it has "
            f"{', '.join(scores) or 'none'}."
        )
    return AlignmentScore(**scores[full_name])


def summarise_alignment(
    name: str,
    found: RunningSums,
    settings: Mapping[str, Any],
    *,
    states: Sequence[ObservedState],
    variants: Sequence[str],
    gaps: Sequence[int],
) -> AnalysisResult:
    """Return the result of sums.

    Args:
        name: Name of the analysis.
        found: Sums of the analysis.
        settings: What decided the sums.
        states: The states that the sums are of.
        variants: The tokens for which measures are taken, in order.
        gaps: Distances, in layers, at which tokens were compared with themselves.
    """
    groups = GroupSums(found.sums)
    cells = {state: _curves_of_state(state, groups, gaps) for state in states}
    if found.kept:
        cells[ObservedState.RESIDUAL] |= _curves_of_pairs(
            found.kept, cells[ObservedState.RESIDUAL], 1 / groups.sizes.sum()
        )
    cells[ObservedState.RESIDUAL] |= curves_of_kinds(groups)
    measures = tuple(dict.fromkeys(chain.from_iterable(cells.values())))
    depth = next(iter(cells[ObservedState.RESIDUAL].values())).value.shape[1] - 1
    coords: dict[str, tuple[Any, ...]] = {
        "state": tuple(map(str, states)),
        "tokens": tuple(variants),
        "measure": measures,
        "layer": tuple(range(depth + 1)),
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    for k, curves in enumerate(cells.values()):
        for measure, curve in curves.items():
            values[k, :, measures.index(measure)] = curve.estimate()
    more: dict[str, Any] = {
        "scores": _scores(cells[ObservedState.RESIDUAL], variants),
        "left_out": len(found.left_out),
    }
    n = int(groups.sizes.sum())
    plots = tuple(make_alignment_plots(coords, gaps, kinds_in_sums(groups.names())))
    settings = {**settings, "found": more}
    headline = make_alignment_headline(more["scores"])
    return AnalysisResult(name, values, tuple(coords), coords, n, settings, plots, headline)


def _curves_of_state(
    state: ObservedState, groups: GroupSums, gaps: Sequence[int]
) -> dict[str, GroupCurve]:
    """Return all measures of a state except those of drawn pairs."""
    first, *others = (_evaluate(state, groups, kept, gaps) for kept in groups.choices())
    curves: dict[str, GroupCurve] = {}
    for measure, value in first.items():
        without = np.stack([other[measure].numpy() for other in others])
        curves[measure] = GroupCurve(value.numpy(), without, groups.sizes)
    unknown = np.full((len(groups.sizes), *next(iter(curves.values())).value.shape), np.nan)
    for measure, value in _deviations(state, groups).items():
        curves[measure] = GroupCurve(value.numpy(), unknown, groups.sizes)
    return curves


def _evaluate(
    state: ObservedState, groups: GroupSums, kept: Tensor, gaps: Sequence[int]
) -> dict[str, Tensor]:
    """Return each measure of the samples in some groups, (variants, layers)."""
    n = float(groups.total("n", kept))
    numbers = groups.total(f"{state} numbers", kept) / n
    found = dict(zip(alignment_measure_names(gaps), numbers.unbind(-1), strict=True))
    sums = groups.total(f"{state} vectors", kept)  # (variants, layers, modes, sets, width)
    perceptual, textual = (sums / n).unbind(-2)
    pairs = {"ima_same_layer": inner_product_of_sums(perceptual, textual)}
    if state is ObservedState.RESIDUAL:
        pairs["ima_input"] = inner_product_of_sums(perceptual[:, :1], textual)
        if "noise vectors" in groups.names():
            noise = groups.total("noise vectors", kept)[..., 0, :] / n
            pairs["noise-textual"] = inner_product_of_sums(noise, textual)
            pairs["noise-perceptual"] = inner_product_of_sums(noise, perceptual)
    own = groups.total(f"{state} squares", kept)  # of each sample with itself
    within = divide_sums(inner_product_of_sums(sums, sums) - own, n * (n - 1))
    first = groups.total(f"{state} vectors", kept & groups.half)
    of_first = float(groups.total("n", kept & groups.half))
    of_second = float(groups.total("n", kept & ~groups.half))
    halves = divide_sums(inner_product_of_sums(first, sums - first), of_first * of_second)
    for k, each in enumerate(SETS):
        pairs |= {each: within[..., k], f"{each} {HALVES}": halves[..., k]}
    for prefix, values in pairs.items():
        found |= name_similarity_measures(prefix, values, VECTOR_MODES)
    return found


def _deviations(state: ObservedState, groups: GroupSums) -> dict[str, Tensor]:
    """Return the standard deviations over all pairs of samples, of second moments."""
    if f"{state} moments" not in groups.names():
        return {}
    # (variants, layers, modes, sets, width, width), of all samples
    moments = groups.per_group(f"{state} moments")
    n = float(groups.sizes.sum())
    every = groups.choices()[0]
    sums = groups.total(f"{state} vectors", every)
    squares = groups.total(f"{state} squares", every)
    fourth = groups.per_group(f"{state} fourth moments")
    means = sums / n
    pairs: dict[str, tuple[Tensor, Tensor]] = {}  # means of inner products, and of their squares
    for name in SCORE_NAMES if state is ObservedState.RESIDUAL else ("ima_same_layer",):
        at = slice(0, 1) if name == "ima_input" else slice(None)
        second = (moments[:, at, :, 0] * moments[:, :, :, 1]).sum((-2, -1)) / n**2
        pairs[name] = inner_product_of_sums(means[:, at, :, 0], means[:, :, :, 1]), second
    for k, each in enumerate(SETS):  # without the pairs of a sample with itself
        first = inner_product_of_sums(sums[..., k, :], sums[..., k, :]) - squares[..., k]
        second = moments[..., k, :, :].square().sum((-2, -1)) - fourth[..., k]
        pairs[each] = divide_sums(first, n * (n - 1)), divide_sums(second, n * (n - 1))
    found: dict[str, Tensor] = {}
    for prefix, (mean, second) in pairs.items():
        deviation = (second - mean.square()).clamp(min=0).sqrt()
        for measure, values in name_similarity_measures(prefix, deviation, VECTOR_MODES).items():
            found[f"{measure} deviation"] = values
    return found


def _curves_of_pairs(
    kept: Mapping[str, Tensor], curves: Mapping[str, GroupCurve], own_share: float
) -> dict[str, GroupCurve]:
    """Return the measures of drawn pairs.

    Args:
        kept: Similarities of pairs, from `DrawnPairs.compare`.
        curves: Curves of single samples: pairs of a sample with itself are a part of all pairs of
            perceptual and textual tokens.
        own_share: How large this part is.
    """
    value, without = mean_of_drawn_pairs(kept)
    sizes = np.ones(len(without))
    found: dict[str, GroupCurve] = {}
    for k, comparison in enumerate(COMPARISONS):
        for m, mode in enumerate(TOKEN_MODES):
            own, share = np.zeros_like(value[:, :, k, m]), 0.0
            if comparison in _OF_ONE_SAMPLE:
                own, share = curves[f"{_OF_ONE_SAMPLE[comparison]} {mode}"].value, own_share
            all_pairs = share * own + (1 - share) * value[..., k, m]
            without_each = share * own + (1 - share) * without[..., k, m]
            found[f"{comparison} {mode}"] = GroupCurve(all_pairs, without_each, sizes)
    return found


def _scores(curves: Mapping[str, GroupCurve], variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the scores as plain data: variant -> name -> score."""
    found: dict[str, dict[str, Any]] = {variant: {} for variant in variants}
    for prefix in SCORE_NAMES:
        for name in similarity_measure_names(prefix):
            if name in curves:
                estimates = curves[name].score().estimate()
                for variant, statistics in zip(variants, estimates, strict=True):
                    value, low, high, n = statistics.tolist()
                    found[variant][name] = asdict(AlignmentScore(value, low, high, int(n)))
    return found
