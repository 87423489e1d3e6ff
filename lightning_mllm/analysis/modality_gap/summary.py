"""From moments per group of samples to distances at each layer, and the score, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.core.token_sets import SETS
from lightning_mllm.analysis.modality_gap.frechet import TokenMoments, frechet_distance
from lightning_mllm.analysis.modality_gap.token_sums import ENDS, KEPT
from lightning_mllm.errors import DataError
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, stack_interval
from lightning_mllm.statistics.jackknife import GROUPS, jackknife

SCORE = "all"  # the place of the score, beside the layers
MEASURES = ("log10_distance", "outliers_perceptual_percent", "outliers_textual_percent")
_DEVIATIONS = 3  # from the median norm on, in standard deviations, a token is an outlier


@dataclass(frozen=True)
class ModalityGapScore:
    """A modality integration rate.

    Attributes:
        value: log10 of the sum of the layers' distances.
        low_95: Low end of its 95 % interval.
        high_95: High end of its 95 % interval.
        n: Number of samples that it is made of.
        perceptual: Number of visual tokens.
        textual: Number of textual tokens.
    """

    value: float
    low_95: float
    high_95: float
    n: int
    perceptual: int
    textual: int


def mir_score(result: AnalysisResult) -> ModalityGapScore:
    """Return the modality integration rate.

    Args:
        result: The result of a `MIR`.

    Raises:
        DataError: It is the result of another analysis.
    """
    score = result.settings.get("found", {}).get("mir")
    if score is None:
        raise DataError(f"Result {result.name!r} has no MIR. Give the result of a `MIR`.")
    return ModalityGapScore(**score)


def summarise_modality_gap(
    name: str, found: RunningSums, settings: Mapping[str, Any]
) -> AnalysisResult:
    """Return the result of sums and lists, see `TokenSums`.

    Args:
        name: Name of the analysis.
        found: What is found; its outliers are replaced here.
        settings: What decided it.

    Raises:
        DataError: There are more outliers than were kept.
    """
    sizes = found.sums["n"].numpy()
    there = sizes > 0
    shares = {each: _replace_outliers(found, each) for each in SETS}  # (layers,)
    distances = _measure_all(found, torch.from_numpy(np.flatnonzero(there)))
    logarithms = np.log10(np.concatenate([distances.sum(1, keepdims=True), distances], axis=1))
    estimates = jackknife(logarithms[0], logarithms[1:], sizes[there])
    layers = (SCORE, *(str(layer) for layer in range(1, distances.shape[1] + 1)))
    coords: dict[str, tuple[Any, ...]] = {
        "state": ("residual",),
        "measure": MEASURES,
        "layer": layers,
        "statistic": STATISTICS,
    }
    rows = [estimates]
    for each in SETS:
        own = np.concatenate([[shares[each].mean()], shares[each]])
        without = np.full((2, len(own)), np.nan)
        rows.append(stack_interval(own, without, np.full(len(own), sizes.sum())))
    tokens = {each: len(found.lists[f"{each} groups"]) for each in SETS}
    value, low, high, n = estimates[0].tolist()
    score = ModalityGapScore(value, low, high, int(n), **tokens)
    more = {"mir": asdict(score), "left_out": len(found.left_out)}
    plot = ResultPlot(
        "modality_gap",
        "lines",
        x="layer",
        y="measure",
        shown={MEASURES[0]: "log10 of the distance"},
        fixed={},
        xlabel=f"After layer ({SCORE!r}: of the sum, which is MIR)",
        label="log10 of the Fréchet distance",
        title="Visual and textual tokens",
        over=GROUPS,
    )
    headline = Headline(
        "Modality integration rate: log10 of the sum of the layers' distances.",
        ("MIR", "N", "visual tokens", "textual tokens"),
        ((format_estimate(estimates[0]), format_count(estimates[0]), *map(str, tokens.values())),),
    )
    settings = {**settings, "found": more}
    values = np.stack(rows)[None]
    return AnalysisResult(
        name, values, tuple(coords), coords, int(sizes.sum()), settings, (plot,), headline
    )


def _measure_all(found: RunningSums, groups: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return distances of all groups, and without each in turn, (1 + groups, layers)."""
    choices = [groups]
    if len(groups) > 1:
        choices += [groups[groups != group] for group in groups]
    else:
        choices += [groups]  # no interval can be made of it
    depth = found.sums[f"{SETS[0]} totals"].shape[1]
    rows = []
    for kept in track(choices, "Distances without each group"):
        rows.append([_measure_layer(found, kept, layer) for layer in range(depth)])
    return np.array(rows, dtype=np.float64)


def _measure_layer(found: RunningSums, kept: Tensor, layer: int) -> float:
    """Return the distance at a layer, of the samples in some groups."""
    moments = []
    for each in SETS:
        own = torch.isin(found.lists[f"{each} groups"], kept)
        sums = (found.sums[f"{each} {key}"][kept, layer].sum(0) for key in ("totals", "squares"))
        moments.append(TokenMoments(float(own.sum()), *sums))
    textual = torch.isin(found.lists["textual groups"], kept)
    scale = float(found.lists["textual norms"][textual, layer].mean())
    return frechet_distance(*moments) / scale**2


def _replace_outliers(found: RunningSums, each: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Replace outliers of a set in its sums; return their share at each layer, in percent."""
    norms = found.lists[f"{each} norms"]  # (tokens, layers)
    median, reach = norms.median(0).values, _DEVIATIONS * norms.std(0, correction=1)
    outliers = (norms - median).abs() > reach
    centres = found.lists[f"{each} drawn states"].double().median(0).values  # (layers, width)
    taken = torch.zeros(norms.shape[1], dtype=torch.long)
    for end in ENDS:
        kept = found.lists[f"{each} {end} norms"]
        beyond = kept - median > reach if end == "largest" else median - kept > reach
        taken += beyond.sum(0)
        for layer in beyond.any(0).nonzero()[:, 0].tolist():
            rows = beyond[:, layer]
            states = found.lists[f"{each} {end} states"][rows, layer].double()
            groups = found.lists[f"{each} {end} groups"][rows, layer]
            centre = centres[layer]
            for group in groups.unique().tolist():
                own = states[groups == group]
                found.sums[f"{each} totals"][group, layer] += len(own) * centre - own.sum(0)
                squares = len(own) * torch.outer(centre, centre) - own.T @ own
                found.sums[f"{each} squares"][group, layer] += squares
    if not torch.equal(taken, outliers.sum(0)):
        raise DataError(
            f"More than {KEPT} of {len(norms)} {each} tokens are outliers at a layer, by the norm "
            "of their states, and only so many are kept. Use fewer samples: the measure was made "
            "for 100 pictures."
        )
    share = 100 * outliers.double().mean(0)
    return np.asarray(share.numpy())
