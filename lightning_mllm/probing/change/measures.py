"""What a projection changes of each picture, and the table of it, with intervals over pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.finite import check_finite
from lightning_mllm.probing.change.neighbours import neighbour_overlap, overlap_by_chance
from lightning_mllm.probing.change.reconstruction import Reconstruction, reconstruct_patches
from lightning_mllm.probing.features.extraction import ExtractedSamples
from lightning_mllm.probing.features.points import Point
from lightning_mllm.statistics.correlation import correlate
from lightning_mllm.statistics.interval import ENDS, VALUE
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    bootstrap_estimate,
    bootstrap_ratio_of_means,
)

BEFORE, BEHIND = Point("pre"), Point("post")
OVERLAP, UNEXPLAINED = "overlap", "unexplained"
CHANGE_COLUMNS = (*("measure", "of", "value", "low_95", "high_95", "chance", "n", "patches"),)
LINK_COLUMNS = (
    *("measure", "of", "scorer", "right", "wrong", "n_right", "n_wrong"),
    *("correlation", "low_95", "high_95", "p"),
)


@dataclass(frozen=True, eq=False)
class ChangeMeasure:
    """One number of each picture; a share of several pictures is a ratio of sums.

    Attributes:
        measure: `overlap` of neighbours, or the share of the variance that is `unexplained`.
        of: Number of neighbours, or the region: `all`, `object`, `other`.
        above: (pictures,), numerators; NaN where a picture has none.
        below: (pictures,), denominators.
        chance: What is to be expected where the projection keeps nothing.
        patches: Number of patches; None where whole pictures are compared.
    """

    measure: str
    of: str
    above: Floats
    below: Floats
    chance: float
    patches: int | None = None

    @property
    def name(self) -> str:
        """Name in metrics and figures: `overlap/10`, `unexplained/object`."""
        return f"{self.measure}/{self.of}"

    @property
    def by_picture(self) -> Floats:
        """(pictures,), the number of each picture alone."""
        return self.above / self.below


@dataclass(frozen=True, eq=False)
class ProjectionChanges:
    """What a projection changes of some pictures.

    Attributes:
        pictures: The pictures.
        measures: What was measured of them.
    """

    pictures: tuple[str, ...]
    measures: tuple[ChangeMeasure, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row per measure: its value with a bootstrap over pictures, chance, and N."""
        draws = Bootstrap().draw(np.array(self.pictures), "change")
        for each in self.measures:
            above, below = each.above[:, None], each.below[:, None]
            ratio = bootstrap_ratio_of_means(above, below)
            (found,) = bootstrap_estimate(ratio, above, draws)
            yield {
                "measure": each.measure,
                "of": each.of,
                "value": float(found[VALUE]),
                **dict(zip(("low_95", "high_95"), found[ENDS].tolist(), strict=True)),
                "chance": each.chance,
                "n": int((~np.isnan(each.above)).sum()),
                "patches": each.patches,
            }

    def link(self, right: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, Any]]:
        """Yield how each measure goes with right answers, per scorer.

        The p-value is that of a permutation test over pictures: how often the pictures' numbers, in
        random order, go with the answers as closely. It is not corrected for the number of tests.

        Args:
            right: Scorer -> picture -> share of the questions about it that are answered rightly.
        """
        for scorer, shares in right.items():
            answered = np.array([shares.get(each, np.nan) for each in self.pictures])
            for each in self.measures:
                values = each.by_picture
                there = ~np.isnan(values + answered)
                values, good = values[there], answered[there]
                if not there.any():
                    continue
                found = correlate(values, good, "pearson")
                yield {
                    "measure": each.measure,
                    "of": each.of,
                    "scorer": scorer,
                    "right": _mean(values, good),
                    "wrong": _mean(values, 1 - good),
                    "n_right": float(good.sum()),
                    "n_wrong": float((1 - good).sum()),
                    "correlation": found.value,
                    "low_95": found.interval.low,
                    "high_95": found.interval.high,
                    "p": found.p,
                }


def measure_change(
    found: ExtractedSamples,
    pictures: Mapping[str, str],
    neighbours: Sequence[int] = (10,),
) -> ProjectionChanges:
    """Measure what a projection changes, of each picture once.

    Args:
        found: From `extract_samples` at the points `BEFORE` and `BEHIND`; with patches, these are
            read back as well.
        pictures: Sample id -> what it is about.
        neighbours: Numbers of nearest neighbours.

    Raises:
        DataError: There are too few pictures.
        NotFiniteError: A feature is NaN or infinite.
    """
    rows: dict[str, int] = {}  # the first sample of each picture
    for row, sample_id in enumerate(found.sample_ids):
        rows.setdefault(pictures[sample_id], row)
    chosen = list(rows.values())
    ids = [found.sample_ids[row] for row in chosen]
    before, behind = (found.vectors[point.name][chosen] for point in (BEFORE, BEHIND))
    for features in (before, behind):
        check_finite(features, ids, "The features")
    if not ids:
        raise DataError("There are no pictures to compare. Check that the split is not empty.")
    measures = []
    for k in neighbours:
        overlap = neighbour_overlap(before, behind, k, ids).numpy()
        chance = overlap_by_chance(k, len(ids))
        measures.append(ChangeMeasure(OVERLAP, str(k), overlap, np.ones(len(ids)), chance))
    if found.patches:
        read = reconstruct_patches([found.patches[row] for row in chosen])
        measures += [_measure_region(read, region) for region in read.regions]
    return ProjectionChanges(tuple(rows), tuple(measures))


def _measure_region(found: Reconstruction, region: str) -> ChangeMeasure:
    there = found.patches[region].numpy() > 0
    return ChangeMeasure(
        measure=UNEXPLAINED,
        of=region,
        above=np.where(there, found.unexplained[region].numpy(), np.nan),
        below=np.where(there, found.variance[region].numpy(), np.nan),
        chance=1.0,
        patches=int(found.patches[region].sum()),
    )


def _mean(values: Floats, weights: Floats) -> float | None:
    """Return the weighted mean; None where all weights are 0."""
    return float(values @ weights / weights.sum()) if weights.any() else None
