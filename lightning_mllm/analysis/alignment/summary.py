"""From sums per group of samples to curves over layers with their intervals, and to scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lightning_mllm.analysis.alignment.batch_measures import PAIRED, PAIRED_INPUT, number_names
from lightning_mllm.analysis.alignment.between_kinds import curves_of_kinds, kinds_in, pair_name
from lightning_mllm.analysis.alignment.drawn_pairs import COMPARISONS, mean_of_pairs
from lightning_mllm.analysis.alignment.group_sums import Curve, Groups, inner, over
from lightning_mllm.analysis.alignment.similarity import TOKEN_MODES, VECTOR_MODES, names
from lightning_mllm.analysis.core.result import AnalysisResult, Plot
from lightning_mllm.analysis.core.running_sums import Found
from lightning_mllm.analysis.core.token_sets import ALL_TOKENS, SETS
from lightning_mllm.analysis.forward.observe import State
from lightning_mllm.errors import DataError
from lightning_mllm.statistics.interval import STATISTICS, no_numbers
from lightning_mllm.statistics.jackknife import GROUPS
from lightning_mllm.statistics.missing import Floats

Reading = Literal["ima_input", "ima_same_layer"]
READINGS: tuple[Reading, ...] = ("ima_input", "ima_same_layer")
HALVES = "halves"
_OF_ONE_SAMPLE = {"ima_same_layer": PAIRED, "ima_input": PAIRED_INPUT}

_OVER_LAYERS: dict[str, Any] = {"x": "layer", "y": "measure", "xlabel": "Layers behind (0: embedding)", "over": GROUPS}


@dataclass(frozen=True)
class Score:
    """An implicit alignment score: a cosine, with its 95 % interval and the number of samples behind it."""

    value: float
    low_95: float
    high_95: float
    n: int


def alignment_score(
    result: AnalysisResult, reading: Reading = "ima_input", mode: str = "avg", tokens: str = ALL_TOKENS
) -> Score:
    """Return the mean over layers of a curve of all pairs of samples; of layers 0 to L - 1, as in the paper.

    Args:
        result: Of `Alignment`.
        reading: With the perceptual tokens that enter the LLM, or those of the same layer.
        mode: How the tokens of a pair are compared; one of `similarity.MODES`.
        tokens: `all`, or `without sinks`.

    Raises:
        DataError: The result has no such score.
    """
    scores = result.settings.get("found", {}).get("scores", {}).get(tokens, {})
    if (name := f"{reading} {mode}") not in scores:
        raise DataError(
            f"Result {result.name!r} has no score {name!r} of tokens {tokens!r}; it has {', '.join(scores) or 'none'}."
        )
    return Score(**scores[name])


def summarise_alignment(
    name: str,
    found: Found,
    settings: Mapping[str, Any],
    *,
    states: Sequence[State],
    variants: Sequence[str],
    gaps: Sequence[int],
) -> AnalysisResult:
    """Return the result of sums.

    Args:
        name: Of the analysis.
        found: Its sums.
        settings: What decided them.
        states: Where they are of.
        variants: For which tokens, in order.
        gaps: Layers between two that were compared.
    """
    groups = Groups(found.sums)
    cells = {state: _curves_of_state(state, groups, gaps) for state in states}
    if found.kept:
        cells[State.RESIDUAL] |= _curves_of_pairs(found.kept, cells[State.RESIDUAL], 1 / groups.sizes.sum())
    cells[State.RESIDUAL] |= curves_of_kinds(groups)
    measures = tuple(dict.fromkeys(measure for curves in cells.values() for measure in curves))
    depth = next(iter(cells[State.RESIDUAL].values())).value.shape[1] - 1
    coords: dict[str, tuple[Any, ...]] = {
        "state": tuple(map(str, states)),
        "tokens": tuple(variants),
        "measure": measures,
        "layer": tuple(range(depth + 1)),
        "statistic": STATISTICS,
    }
    values = no_numbers(coords)
    for k, curves in enumerate(cells.values()):
        for measure, curve in curves.items():
            values[k, :, measures.index(measure)] = curve.estimate()
    more = {"scores": _scores(cells[State.RESIDUAL], variants), "left_out": len(found.left_out)}
    n = int(groups.sizes.sum())
    plots = tuple(_plots(coords, gaps, kinds_in(groups.names())))
    return AnalysisResult(name, values, tuple(coords), coords, n, {**settings, "found": more}, plots)


def _curves_of_state(state: State, groups: Groups, gaps: Sequence[int]) -> dict[str, Curve]:
    """Return all measures of a state but those of drawn pairs."""
    first, *others = (_evaluate(state, groups, kept, gaps) for kept in groups.choices())
    curves = {
        measure: Curve(value.numpy(), np.stack([other[measure].numpy() for other in others]), groups.sizes)
        for measure, value in first.items()
    }
    unknown = np.full((len(groups.sizes), *next(iter(curves.values())).value.shape), np.nan)
    deviations = _deviations(state, groups)
    return curves | {measure: Curve(value.numpy(), unknown, groups.sizes) for measure, value in deviations.items()}


def _evaluate(state: State, groups: Groups, kept: Tensor, gaps: Sequence[int]) -> dict[str, Tensor]:
    """Return each measure of the samples in some groups, (variants, layers)."""
    n = float(groups.total("n", kept))
    numbers = groups.total(f"{state} numbers", kept) / n
    found = dict(zip(number_names(gaps), numbers.unbind(-1), strict=True))
    sums = groups.total(f"{state} vectors", kept)  # (variants, layers, modes, sets, width)
    perceptual, textual = (sums / n).unbind(-2)
    pairs = {"ima_same_layer": inner(perceptual, textual)}
    if state is State.RESIDUAL:
        pairs["ima_input"] = inner(perceptual[:, :1], textual)
        if "noise vectors" in groups.names():
            noise = groups.total("noise vectors", kept)[..., 0, :] / n
            pairs |= {"noise-textual": inner(noise, textual), "noise-perceptual": inner(noise, perceptual)}
    first = groups.total(f"{state} vectors", kept & groups.half)
    sizes = [float(groups.total("n", kept & half)) for half in (groups.half, ~groups.half)]
    within = over(inner(sums, sums) - groups.total(f"{state} squares", kept), n * (n - 1))  # no sample with itself
    halves = over(inner(first, sums - first), sizes[0] * sizes[1])
    for k, each in enumerate(SETS):
        pairs |= {each: within[..., k], f"{each} {HALVES}": halves[..., k]}
    for prefix, values in pairs.items():
        found |= zip(names(prefix, VECTOR_MODES), values.unbind(-1), strict=True)
    return found


def _deviations(state: State, groups: Groups) -> dict[str, Tensor]:
    """Return the standard deviations over all pairs of samples, of second moments."""
    if f"{state} moments" not in groups.names():
        return {}
    moments = groups.per_group(f"{state} moments")  # (variants, layers, modes, sets, width, width), of all samples
    n = float(groups.sizes.sum())
    every = groups.choices()[0]
    sums, squares = (groups.total(f"{state} {each}", every) for each in ("vectors", "squares"))
    means, fourth = sums / n, groups.per_group(f"{state} fourth moments")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}  # means of inner products, and of their squares
    for reading in READINGS if state is State.RESIDUAL else ("ima_same_layer",):
        at = slice(0, 1) if reading == "ima_input" else slice(None)
        second = (moments[:, at, :, 0] * moments[:, :, :, 1]).sum((-2, -1)) / n**2
        pairs[reading] = inner(means[:, at, :, 0], means[:, :, :, 1]), second
    for k, each in enumerate(SETS):  # no sample with itself
        own, own_squared = squares[..., k], fourth[..., k]
        first, second = inner(sums[..., k, :], sums[..., k, :]) - own, moments[..., k, :, :].square().sum((-2, -1))
        pairs[each] = over(first, n * (n - 1)), over(second - own_squared, n * (n - 1))
    found: dict[str, Tensor] = {}
    for prefix, (mean, second) in pairs.items():
        deviation = (second - mean.square()).clamp(min=0).sqrt()
        found |= zip([f"{each} deviation" for each in names(prefix, VECTOR_MODES)], deviation.unbind(-1), strict=True)
    return found


def _curves_of_pairs(kept: Mapping[str, Tensor], curves: Mapping[str, Curve], own_share: float) -> dict[str, Curve]:
    """Return the measures of drawn pairs.

    Args:
        kept: The pairs.
        curves: Of single samples, which of all pairs of perceptual and textual tokens are a part.
        own_share: How large a part.
    """
    value, without = mean_of_pairs(kept)
    sizes = np.ones(len(without))
    found: dict[str, Curve] = {}
    for k, comparison in enumerate(COMPARISONS):
        for m, mode in enumerate(TOKEN_MODES):
            own, share = np.zeros_like(value[:, :, k, m]), 0.0
            if comparison in _OF_ONE_SAMPLE:
                own, share = curves[f"{_OF_ONE_SAMPLE[comparison]} {mode}"].value, own_share
            mine, left = (share * own + (1 - share) * each[..., k, m] for each in (value, without))
            found[f"{comparison} {mode}"] = Curve(mine, left, sizes)
    return found


def _scores(curves: Mapping[str, Curve], variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the scores as plain data, per variant."""
    estimates = {name: curves[name].score().estimate() for each in READINGS for name in names(each) if name in curves}
    return {
        variant: {name: _plain(cells[v]) for name, cells in estimates.items()} for v, variant in enumerate(variants)
    }


def _plain(cells: Floats) -> dict[str, Any]:
    value, low, high, n = cells.tolist()
    return asdict(Score(value, low, high, int(n)))


def _plots(coords: Mapping[str, tuple[Any, ...]], gaps: Sequence[int], kinds: Sequence[str]) -> Iterable[Plot]:
    """Yield what is drawn, of all tokens; the main curves without sinks too."""
    cosine, title = "Cosine similarity", "Perceptual and textual tokens"
    main = {
        "ima_same_layer avg": "perceptual, textual",
        "ima_input avg": "perceptual at the input, textual",
        "perceptual avg": "perceptual, perceptual",
        "textual avg": "textual, textual",
        "noise-textual avg": "noise, textual",
    }
    for tokens in coords["tokens"]:
        ending = "" if tokens == ALL_TOKENS else f" {tokens}"
        yield _plot(coords, f"alignment{ending}".replace(" ", "_"), main, cosine, title + ending, tokens=tokens)
    modes = {measure: measure.removeprefix("ima_same_layer ") for measure in names("ima_same_layer")}
    yield _plot(coords, "modes", modes, cosine, f"{title}, all pairs of samples")
    own = {measure: measure.removeprefix(f"{PAIRED} ") for measure in names(PAIRED)}
    yield _plot(coords, "paired", own, cosine, f"{title} of one sample")
    later = {f"consecutive {gap} {each} diag_mean": f"{each}, {gap} on" for gap in gaps for each in SETS}
    if later:
        yield _plot(coords, "consecutive", later, cosine, "Each token with itself some layers later")
    norms = {f"norm {each} median": each for each in SETS}
    yield _plot(coords, "norms", norms, "Norm", "Median norm of a sample's tokens")
    if {State.SA, State.FC2} & set(coords["state"]):
        ratios = {f"update ratio {each}": each for each in SETS}
        yield _plot(coords, "update_ratios", ratios, "Norm / norm", "Updates beside the residual stream, median")
    pairs = {pair_name(*pair): " and ".join(dict.fromkeys(pair)) for pair in combinations_with_replacement(kinds, 2)}
    for each in SETS if kinds else ():
        between = {f"{each} avg{ending}": called for ending, called in pairs.items()}
        yield _plot(coords, f"{each}_kinds", between, cosine, f"{each.capitalize()} tokens of samples of two kinds")


def _plot(
    coords: Mapping[str, tuple[Any, ...]],
    name: str,
    shown: Mapping[str, str],
    label: str,
    title: str,
    *,
    tokens: str = ALL_TOKENS,
) -> Plot:
    there = {measure: called for measure, called in shown.items() if measure in coords["measure"]}
    return Plot(name, "lines", shown=there, fixed={"tokens": tokens}, label=label, title=title, **_OVER_LAYERS)
