"""How the measures of an alignment are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement, product
from typing import Any

from lightning_mllm.alignment_names import ALL_TOKENS
from lightning_mllm.analysis.alignment.kinds import name_of_kinds
from lightning_mllm.analysis.alignment.measures import PAIRED
from lightning_mllm.analysis.alignment.similarity import similarity_measure_names
from lightning_mllm.analysis.core.result import ResultPlot
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.analysis.forward.observe import ObservedState
from lightning_mllm.statistics.jackknife import GROUPS

_COSINE = "Cosine similarity"
_TITLE = "Perceptual and textual tokens"
_MAIN = {
    "ima_same_layer avg": "perceptual, textual",
    "ima_input avg": "perceptual at the input, textual",
    "perceptual avg": "perceptual, perceptual",
    "textual avg": "textual, textual",
    "noise-textual avg": "noise, textual",
}

Coords = Mapping[str, tuple[Any, ...]]


def make_alignment_plots(
    coords: Coords, gaps: Sequence[int], kinds: Sequence[str]
) -> Iterator[ResultPlot]:
    """Yield what is drawn, of all tokens; the main curves without sinks too.

    Args:
        coords: Coordinates of the result.
        gaps: Distances, in layers, at which tokens were compared with themselves.
        kinds: The kinds of samples that were compared.
    """
    for tokens in coords["tokens"]:
        ending = "" if tokens == ALL_TOKENS else f" {tokens}"
        name = f"alignment{ending}".replace(" ", "_")
        yield _make_plot(coords, name, _MAIN, _COSINE, _TITLE + ending, tokens=tokens)
    modes = _name_by_mode("ima_same_layer")
    yield _make_plot(coords, "modes", modes, _COSINE, f"{_TITLE}, all pairs of samples")
    paired = _name_by_mode(PAIRED)
    yield _make_plot(coords, "paired", paired, _COSINE, f"{_TITLE} of one sample")
    later: dict[str, str] = {}
    for gap, each in product(gaps, SETS):
        later[f"consecutive {gap} {each} diag_mean"] = f"{each}, {gap} on"
    if later:
        title = "Each token with itself some layers later"
        yield _make_plot(coords, "consecutive", later, _COSINE, title)
    norms = {f"norm {each} median": each for each in SETS}
    yield _make_plot(coords, "norms", norms, "Norm", "Median norm of a sample's tokens")
    if {ObservedState.SA, ObservedState.FC2} & set(coords["state"]):
        ratios = {f"update ratio {each}": each for each in SETS}
        title = "Updates beside the residual stream, median"
        yield _make_plot(coords, "update_ratios", ratios, "Norm / norm", title)
    for each in SETS if kinds else ():
        between: dict[str, str] = {}
        for pair in combinations_with_replacement(kinds, 2):
            between[f"{each} avg{name_of_kinds(*pair)}"] = " and ".join(dict.fromkeys(pair))
        title = f"{each.capitalize()} tokens of samples of two kinds"
        yield _make_plot(coords, f"{each}_kinds", between, _COSINE, title)


def _name_by_mode(prefix: str) -> dict[str, str]:
    """Return the measures of a similarity -> their modes."""
    return {name: name.removeprefix(f"{prefix} ") for name in similarity_measure_names(prefix)}


def _make_plot(
    coords: Coords,
    name: str,
    shown: Mapping[str, str],
    label: str,
    title: str,
    *,
    tokens: str = ALL_TOKENS,
) -> ResultPlot:
    """Return curves over layers, of those measures that there are."""
    there = {measure: called for measure, called in shown.items() if measure in coords["measure"]}
    return ResultPlot(
        name,
        "lines",
        x="layer",
        y="measure",
        shown=there,
        fixed={"tokens": tokens},
        xlabel="After layer (0: embedding)",
        label=label,
        title=title,
        over=GROUPS,
    )
