"""Means of maps over samples: of all patches, those of the object, and as many others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    bootstrap_estimate,
    bootstrap_mean,
)
from lightning_mllm.store.sample_maps import SampleMaps
from lightning_mllm.types import Segment

WORDS = "logit lens"
ATTENTION = "attention from the last position"
HIDING = "effect of hiding the block"
ANSWER = "lens: the model's answer"
OBJECT, CONTROL, ALL = "object", "as many others", "all patches"
PATCHES = {
    OBJECT: Segment.IMAGE_OBJECT,
    CONTROL: Segment.IMAGE_RANDOM,
    ALL: Segment.IMAGE,
}
_PLOTS = {  # map -> name of the figure, label of its axis
    ATTENTION: ("attention", "share of attention per patch"),
    ANSWER: ("answer", "log-probability of the model's answer"),
}
_SHORT = {ATTENTION: "attention", HIDING: "hiding", ANSWER: "answer"}  # for the terminal
_ROWS = 5  # layers of a map in the headline


def summarise_picture_maps(
    name: str, maps: Sequence[SampleMaps], settings: Mapping[str, Any], bootstrap: Bootstrap
) -> AnalysisResult:
    """Return, per map, set of patches and layer, the mean over samples of the patches' mean.

    What hides a block hides it from layer 0 on, and its effect stands there.

    Args:
        name: Name of the analysis.
        maps: Those of the samples.
        settings: What decided them.
        bootstrap: How intervals are drawn, over pictures.
    """
    there: list[str] = []
    layers: set[int] = set()
    for each in (ATTENTION, HIDING, ANSWER):
        found = [sample.values[each] for sample in maps if each in sample.values]
        there += [each] if found else []
        layers |= {layer for numbers in found for layer in numbers.layers or (0,)}
    order = sorted(layers)
    coords: dict[str, tuple[Any, ...]] = {
        "map": tuple(there),
        "patches": tuple(PATCHES),
        "layer": tuple(order),
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    if maps:
        draws = bootstrap.draw(np.array([sample.notes["picture"] for sample in maps]), name)
        for k, each in enumerate(there):
            for j, patches in enumerate(PATCHES):
                means = np.stack([_mean(sample, each, patches, order) for sample in maps])
                values[k, j] = bootstrap_estimate(bootstrap_mean(means), means, draws)
    return AnalysisResult(
        name,
        values,
        tuple(coords),
        coords,
        len(maps),
        dict(settings),
        tuple(_plot(each) for each in there if each in _PLOTS and len(order) > 1),
        _make_headline(there, order, values),
    )


def _mean(sample: SampleMaps, name: str, patches: str, order: Sequence[int]) -> Floats:
    """Return the mean of a sample's patches at each layer, (layers,), NaN where there is none."""
    found = np.full(len(order), np.nan)
    if patches != ALL and patches not in sample.sets:
        return found
    inside = np.ones(sample.tokens, dtype=bool) if patches == ALL else sample.sets[patches]
    numbers = sample.values[name]
    for layer, row in zip(numbers.layers or (0,), numbers.values, strict=True):
        found[order.index(layer)] = row[inside].mean()
    return found


def _make_headline(there: Sequence[str], order: Sequence[int], values: Floats) -> Headline:
    """Return the numbers of some layers: of the object's patches, and of as many others.

    Where no sample has boxes, those of all patches.
    """
    patches = [*PATCHES]
    has_object = bool((values[:, patches.index(OBJECT), :, -1] > 0).any())
    shown = [patches.index(each) for each in ((OBJECT, CONTROL) if has_object else (ALL,))]
    rows = []
    for name, own in zip(there, values, strict=True):
        measured = [at for at in range(len(order)) if own[-1, at, -1] > 0]
        for place in np.unique(np.linspace(0, len(measured) - 1, _ROWS).round().astype(int)):
            layer = "all" if name == HIDING else str(order[measured[place]])
            numbers = own[shown, measured[place]]
            cells = [format_estimate(each) for each in numbers]
            rows.append((_SHORT[name], layer, *cells, format_count(numbers[0])))
    caption = "Means per patch over samples, with 95 % intervals over pictures."
    columns = ("map", "layer", *(patches[each] for each in shown), "N")
    return Headline(caption, columns, tuple(rows))


def _plot(name: str) -> ResultPlot:
    slug, label = _PLOTS[name]
    return ResultPlot(
        name=slug,
        style="lines",
        x="layer",
        y="patches",
        shown={patches: patches for patches in PATCHES},
        fixed={},
        xlabel="layer",
        label=label,
        title="Patches of the object, and as many others",
        panels=(name,),
    )
