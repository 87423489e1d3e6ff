"""From counted words to shares with intervals, top words of classes, and pictures to draw."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult, PatchPicture, ResultPlot
from lightning_mllm.analysis.lens.patches.rows import ANY
from lightning_mllm.statistics.interval import STATISTICS, VALUE, missing_interval
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    bootstrap_estimate,
    bootstrap_mean,
)
from lightning_mllm.types import Table

OWN, CHANCE, DIFFERENCE, FREE = "own", "chance", "own - chance", "patches on no object"
SHARES = (OWN, CHANCE, DIFFERENCE, FREE)
TOP_WORDS = ("lens", "layer", "label", "place", "word", "share_of_patches", "patches")
_LISTED = 10  # words of a class and layer


def summarise_patch_words(
    name: str, table: Table, settings: Mapping[str, Any], bootstrap: Bootstrap
) -> AnalysisResult:
    """Return the shares of patches that say their sample's words, per measure and layer.

    Args:
        name: Name of the analysis.
        table: The rows, without their long columns.
        settings: What decided them.
        bootstrap: How intervals are drawn.
    """
    read = table["layer"] >= 0
    layers = tuple(np.unique(table["layer"][read]).tolist())
    scored = read & (table["own"] != "[]") & (table["patches"] > 0)
    pairs = zip(table["lens"][scored].tolist(), table["measure"][scored].tolist(), strict=True)
    found = sorted(set(pairs), key=lambda pair: (pair[0] != "logit lens", pair[1] != ANY, pair[1]))
    measures = tuple(f"{lens}: {measure}" for lens, measure in found)
    coords: dict[str, tuple[Any, ...]] = {
        "measure": measures,
        "share": SHARES,
        "layer": layers if measures else (),
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    for index, (lens, measure) in enumerate(found):
        rows = np.flatnonzero(scored & (table["lens"] == lens) & (table["measure"] == measure))
        some = {column: cells[rows] for column, cells in table.items()}
        pictures, shares = _share_patches(some, layers)
        draws = bootstrap.draw(pictures)
        for place, share in enumerate(shares):
            values[index, place] = bootstrap_estimate(bootstrap_mean(share), share, draws)
    ids = np.unique(table["sample_id"])
    count = len(np.unique(table["sample_id"][read]))
    more = {"samples": len(ids), "with_patches": count, "scored": _count_scored(table, scored)}
    return AnalysisResult(
        name,
        values,
        tuple(coords),
        coords,
        count,
        {**settings, "found": more},
        (_make_plot(),) if measures else (),
        _make_headline(values, measures, layers),
    )


def _share_patches(table: Table, layers: Sequence[int]) -> tuple[Any, list[Floats]]:
    """Return pictures, (objects,), and shares, (objects, layers) each in the order of `SHARES`.

    Args:
        table: The rows of one lens and measure.
        layers: Numbers of the layers.
    """
    _, first, which = np.unique(table["sample_id"], return_index=True, return_inverse=True)
    own = [set(json.loads(cell)) for cell in table["own"][first]]
    pictures = table["picture"][first].tolist()
    owners = Counter(chain.from_iterable(own))  # word -> objects whose own it is
    within: dict[str, Counter[str]] = defaultdict(Counter)  # picture -> the same in it
    for picture, its in zip(pictures, own, strict=True):
        within[picture].update(its)
    objects = Counter(pictures)
    counts = np.full((3, len(own), len(layers)), np.nan)  # own, chance, free
    places = np.searchsorted(np.asarray(layers), table["layer"])
    for row, (thing, place) in enumerate(zip(which.tolist(), places.tolist(), strict=True)):
        patches, free = int(table["patches"][row]), int(table["free"][row])
        said, same = json.loads(table["said"][row]), within[pictures[thing]]
        others = len(own) - objects[pictures[thing]]
        counts[0, thing, place] = sum(said.get(word, 0) for word in own[thing]) / patches
        if others:
            mean = sum(number * (owners[word] - same[word]) for word, number in said.items())
            counts[1, thing, place] = mean / others / patches
        if free:
            elsewhere = json.loads(table["said_free"][row])
            counts[2, thing, place] = sum(elsewhere.get(word, 0) for word in own[thing]) / free
    return table["picture"][first], [counts[0], counts[1], counts[0] - counts[1], counts[2]]


def list_top_words(table: Table) -> Iterator[tuple[Any, ...]]:
    """Yield the most frequent words of each lens, layer and class, as rows of `TOP_WORDS`.

    Counted are the ten most frequent words of each sample.
    """
    counts: dict[tuple[str, int, str], Counter[str]] = defaultdict(Counter)
    patches: Counter[tuple[str, int, str]] = Counter()
    for row in np.flatnonzero((table["measure"] == ANY) & (table["layer"] >= 0)).tolist():
        key = (str(table["lens"][row]), int(table["layer"][row]), str(table["label"][row]))
        counts[key].update(json.loads(table["top"][row]))
        patches[key] += int(table["patches"][row])
    for key in sorted(counts):
        for place, (word, number) in enumerate(counts[key].most_common(_LISTED), 1):
            yield (*key, place, word, number / patches[key], patches[key])


def choose_patch_pictures(
    result: AnalysisResult, table: Table, layer: int | None = None
) -> AnalysisResult:
    """Return a result with pictures to draw.

    Args:
        result: The shares.
        table: All columns of the rows of the samples that are drawn.
        layer: At which layer; by default where most own words are said, else in the middle.
    """
    pictures, drawn = [], Counter[str]()
    rows = np.flatnonzero((table["measure"] == ANY) & (table["layer"] >= 0)).tolist()
    layers = sorted({int(table["layer"][row]) for row in rows})
    for row in rows:
        lens, at = str(table["lens"][row]), int(table["layer"][row])
        if at != (_find_best_layer(result, lens, layers) if layer is None else layer):
            continue
        drawn[lens] += 1
        what = "probability" if lens == "logit lens" else "cosine"
        pictures.append(
            PatchPicture(
                name=f"words-{lens.replace(' ', '-')}-{drawn[lens]}",
                sample_id=str(table["sample_id"][row]),
                words=tuple(json.loads(table["patch_words"][row])),
                values=tuple(json.loads(table["patch_values"][row])),
                label=what.capitalize(),
                title=f"{table['sample_id'][row]}: words of patches at layer {at}, {lens}",
            )
        )
    return replace(result, pictures=tuple(pictures))


def _find_best_layer(result: AnalysisResult, lens: str, layers: Sequence[int]) -> int:
    measure = f"{lens}: {ANY}"
    if measure in result.coords["measure"]:
        own = result.at(measure=measure, share=OWN, statistic="value")
        if not np.isnan(own).all():
            return int(result.coords["layer"][int(np.nanargmax(own))])
    return layers[len(layers) // 2]


def _count_scored(table: Table, scored: Any) -> dict[str, int]:
    """Return of how many samples and pictures the shares are."""
    return {
        "objects": len(np.unique(table["sample_id"][scored])),
        "pictures": len(np.unique(table["picture"][scored])),
    }


def _make_plot() -> ResultPlot:
    return ResultPlot(
        name="patch_words",
        style="lines",
        x="layer",
        y="share",
        shown={OWN: "own words", CHANCE: "chance: words of another picture", FREE: FREE},
        fixed={},
        xlabel="Layers before the lens (0: what enters the LLM)",
        label="Share of patches",
        title="How many of an object's patches say its own words",
    )


def _make_headline(values: Floats, measures: Sequence[str], layers: Sequence[int]) -> Headline:
    """Return, per measure, the layer at which most patches say their own words."""
    if not measures:
        return Headline("The samples have no words of their own: see top_words.csv.")
    rows = []
    for measure, own in zip(measures, values, strict=True):
        best = int(np.argmax(np.nan_to_num(own[0, :, VALUE], nan=-1)))
        controls = [own[SHARES.index(each), best, VALUE] for each in (CHANCE, FREE)]
        cells = ["-" if np.isnan(each) else f"{each:.2f}" for each in controls]
        count = format_count(own[0, best])
        rows.append((measure, str(layers[best]), format_estimate(own[0, best], 2), *cells, count))
    caption = (
        "Share of patches that say their own words, at the layer where most do; by chance, that "
        "is the words of other pictures; and of patches that show no object. The layer is chosen "
        "by the same data, which the interval ignores."
    )
    columns = ("measure", "layer", "own words", "chance", "no object", "N")
    return Headline(caption, columns, tuple(rows))
