"""From mean states to how far classes lie apart, and how fine-tuning has moved them.

What a shift explains is tried on pictures that it was not read from: groups of pictures are in two
halves, the shift of one is added to the states before fine-tuning of the other, and the mean of
both ways counts. Intervals are those of a jackknife over groups of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.steering.class_means import ClassMeans
from lightning_mllm.analysis.steering.vector import draw_vectors
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.jackknife import GROUPS, jackknife
from lightning_mllm.statistics.missing import Floats

OWN = (
    "norm",  # of the mean state
    "from_others",  # norm of its difference to the mean of the other classes' means
)
MOVED = (
    "shift_norm",
    "cosine",  # of before and after
    "cosine_shifted",  # of before + shift, read from other pictures, and after
    "cosine_other_shift",  # of before + the mean shift of the other classes, and after
    "cosine_random",  # of before + a random vector of the shift's norm, and after
)
_RANDOM = 20  # vectors whose mean cosine counts
_SHOWN = {
    "cosine": "before fine-tuning",
    "cosine_shifted": "before + shift of other pictures",
    "cosine_other_shift": "before + shift of other classes",
    "cosine_random": "before + random vector",
}


def summarise_means(
    name: str,
    means: ClassMeans,
    before: ClassMeans | None,
    settings: Mapping[str, Any],
    *,
    left_out: int,
    seed: int,
) -> AnalysisResult:
    """Return the measures per class, segments and layer.

    Args:
        name: Name of the analysis.
        means: States of the model.
        before: States of the same samples before it was fine-tuned.
        settings: What decided them.
        left_out: How many samples have no image, or no text after it.
        seed: Seed of random vectors.
    """
    measures = OWN if before is None else (*OWN, *MOVED)
    layers = next(iter(means.sums.values())).shape[1]
    coords: dict[str, tuple[Any, ...]] = {
        "class": means.classes,
        "segments": means.segments,
        "layer": tuple(range(layers)),
        "measure": measures,
        "statistic": STATISTICS,
    }
    values = missing_interval(coords)
    for (at, own), counts in means.counts.items():
        sizes = counts.numpy()
        held = np.flatnonzero(sizes)

        def compute(groups: Collection[int], at: str = at, own: str = own) -> Floats:
            measured = _measure_own(means, own, at, groups)
            if before is not None:
                measured += _measure_moved(before, means, own, at, groups, seed)
            return torch.stack(measured, dim=1).numpy()

        place = means.classes.index(own), means.segments.index(at)
        values[place] = _with_intervals(compute, held.tolist(), sizes[held])
    found = {
        "weights": means.weights,
        "samples": {f"{own} ({at})": means.count(own, at) for at, own in sorted(means.counts)},
        "looked_at": len(means.samples),
        "left_out": left_out,
        "pictures": len(means.pictures),
    }
    plots = tuple(_make_plots(means, before is not None))
    headline = _make_headline(values, coords)
    return AnalysisResult(
        name,
        values,
        tuple(coords),
        coords,
        len(means.pictures),
        {**settings, "found": found},
        plots,
        headline,
    )


def _with_intervals(
    compute: Callable[[Collection[int]], Floats], groups: list[int], sizes: Floats
) -> Floats:
    """Return the statistics of (layers, measures), computed again without each group."""
    without = []
    for left_out in groups if len(groups) > 1 else ():
        without.append(compute([group for group in groups if group != left_out]))
    value = compute(groups)
    return jackknife(value, np.stack(without) if without else value[None], sizes)


def _measure_own(means: ClassMeans, own: str, at: str, groups: Collection[int]) -> list[Tensor]:
    """Return the measures of `OWN`, (layers + 1,) each."""
    mean = means.mean(own, at, groups)
    others = _mean_of_others(means, own, at, groups)
    return [mean.norm(dim=-1), (mean - others).norm(dim=-1)]


def _mean_of_others(means: ClassMeans, own: str, at: str, groups: Collection[int]) -> Tensor:
    """Return the mean of the other classes' means; NaN without any."""
    others = []
    for where, name in means.sums:
        if where == at and name != own:
            mean = means.mean(name, at, groups)
            others += [mean] if mean.isfinite().all() else []
    return torch.stack(others).mean(0) if others else torch.full_like(means.mean(own, at), np.nan)


def _measure_moved(  # noqa: PLR0917 - all say which vectors
    before: ClassMeans,
    after: ClassMeans,
    own: str,
    at: str,
    groups: Collection[int],
    seed: int,
) -> list[Tensor]:
    """Return the measures of `MOVED`, (layers + 1,) each; the mean over two ways to halve."""
    even = [group for group in groups if group % 2 == 0]
    odd = [group for group in groups if group % 2]
    found = []
    for read, tried in ((even, odd), (odd, even)):
        shift = after.mean(own, at, read) - before.mean(own, at, read)
        others = _mean_of_others(after, own, at, read) - _mean_of_others(before, own, at, read)
        first, last = before.mean(own, at, tried), after.mean(own, at, tried)
        random = draw_vectors(shift, _RANDOM, seed, f"{own}/{at}").double()
        found.append(
            [
                shift.norm(dim=-1),
                cosine_similarity(first, last, dim=-1),
                cosine_similarity(first + shift, last, dim=-1),
                cosine_similarity(first + others, last, dim=-1),
                cosine_similarity(first + random, last[None], dim=-1).mean(0),
            ]
        )
    return [(one + two) / 2 for one, two in zip(*found, strict=True)]


def _make_plots(means: ClassMeans, has_moved: bool) -> list[ResultPlot]:
    plots = []
    for at in means.segments:
        shared: dict[str, Any] = {
            "style": "lines",
            "x": "layer",
            "xlabel": "In front of layer",
            "over": GROUPS,
        }
        slug = at.replace(" ", "_").replace("+", "_")
        if has_moved:
            plots.append(
                ResultPlot(
                    f"shift_{slug}",
                    y="measure",
                    shown=_SHOWN,
                    fixed={"segments": at},
                    label="Cosine to fine-tuned state",
                    title=f"Mean states before and after fine-tuning: {at}",
                    **shared,
                )
            )
        else:
            plots.append(
                ResultPlot(
                    f"norm_{slug}",
                    y="measure",
                    shown={"norm": "mean state", "from_others": "difference to other classes"},
                    fixed={"segments": at},
                    label="Norm",
                    title=f"Mean states of classes: {at}",
                    **shared,
                )
            )
    return plots


def _make_headline(values: Floats, coords: Mapping[str, tuple[Any, ...]]) -> Headline:
    """Return the measures of each class in front of the middle layer and of the final norm."""
    measures = coords["measure"]
    shown = ["cosine", "cosine_shifted"] if len(measures) > len(OWN) else OWN
    layers = coords["layer"]
    chosen = sorted({layers[-1] // 2, layers[-1]})
    rows = []
    for number, name in enumerate(coords["class"]):
        for place, at in enumerate(coords["segments"]):
            for layer in chosen:
                own = values[number, place, layer]
                cells = [format_estimate(own[measures.index(measure)]) for measure in shown]
                rows.append((name, at, str(layer), *cells, format_count(own[0])))
    caption = "Mean states of classes in front of layers; the last layer is the final norm."
    return Headline(caption, ("class", "read at", "layer", *shown, "N"), tuple(rows[:24]))
