"""From rows of steering to shares of answers that turn, with intervals over pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.steering.grid import name_steering_layers
from lightning_mllm.analysis.steering.headline import make_steering_headline
from lightning_mllm.analysis.steering.vector import SteeringVector
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, missing_interval
from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    BootstrapDraws,
    bootstrap_estimate,
    bootstrap_mean,
    bootstrap_share,
)
from lightning_mllm.statistics.question_table import (
    KeptQuestions,
    count_questions,
    pivot_question_table,
)
from lightning_mllm.types import Table

MEASURES = (
    "target_percent",  # of the questions, says the target
    "source_percent",  # still says the source
    "difference_before",  # D without a vector
    "difference_change",  # of D
    "random_target_percent",  # the same of random vectors of equal norm
    "random_source_percent",
    "random_difference_change",
    "random_as_strong_percent",  # of random vectors, D is at least as large
)
_COLUMNS = (
    "before",
    "after",
    "target",
    "source",
    "random_after",
    "random_target",
    "random_source",
    "random_as_strong",
)
_SHOWN = {
    "target_percent": "says the target",
    "source_percent": "still says the source",
    "random_target_percent": "random vector: the target",
    "random_source_percent": "random vector: the source",
}


class SteeringSummary(NamedTuple):
    """The cells of a table of steering, and where they belong.

    Attributes:
        kept: The questions that count.
        coords: Axis -> its coordinates: kind, steer, layers, scale.
        cells: Column -> (questions, steers, windows, scales); NaN where nothing is steered.
        found: Counts, for the settings.
    """

    kept: KeptQuestions
    coords: dict[str, tuple[Any, ...]]
    cells: dict[str, Floats]
    found: dict[str, Any]

    @classmethod
    def of(cls, table: Table, columns: Sequence[str], kind_depth: int | None) -> SteeringSummary:
        """Sort the rows of a sweep."""
        measured = table["measured"]
        kept = KeptQuestions.of(table, kind_depth)
        bounds = np.stack([table["start"][measured], table["stop"][measured]], axis=1)
        windows, which = np.unique(bounds, axis=0, return_inverse=True)
        order = np.lexsort((windows[:, 0], windows[:, 1] - windows[:, 0]))  # single layers first
        windows = windows[order]
        window = np.full(len(measured), -1)
        window[measured] = np.argsort(order)[which.reshape(-1)]
        axes: dict[str, Sequence[Any]] = {
            "steer": tuple(dict.fromkeys(table["steer"][measured].tolist())),
            "window": range(len(windows)),
            "scale": tuple(np.unique(table["scale"][measured]).tolist()),
        }
        coords: dict[str, tuple[Any, ...]] = {
            "kind": tuple(kept.groups),
            "steer": tuple(axes["steer"]),
            "layers": tuple(name_steering_layers(*each) for each in windows.tolist()),
            "scale": tuple(axes["scale"]),
        }
        acts = measured & (table["size"] > 0)
        cells = {}
        for column in columns:
            wide = {**table, "window": window}
            cells[column] = pivot_question_table(wide, column, axes, kept.ids, acts)
        empty = np.unique(table["sample_id"][measured & (table["size"] == 0)])
        found = {
            "questions": count_questions(table, kind_depth),
            "pictures": kept.count_pictures(),
            "left_out_as_picture_was_read": int(table["picture_read"].sum()),
            "with_nothing_to_steer_somewhere": len(empty),
        }
        return cls(kept, coords, cells, found)

    def compute(self, bootstrap: Bootstrap, measures: Sequence[str], measure: Any) -> Floats:
        """Return the statistics, (kinds, steers, windows, scales, measures, 4).

        Args:
            bootstrap: How intervals are drawn.
            measures: Names of the measures.
            measure: Makes (numbers, measures, 4) of column -> (questions, numbers), and draws.
        """
        values = missing_interval({**self.coords, "measure": measures, "statistic": STATISTICS})
        kinds = self.kept.groups.items() if len(self.kept.ids) else ()
        for group, (kind, rows) in enumerate(track(kinds, "Intervals of kinds")):
            own = {name: each[rows].reshape(len(rows), -1) for name, each in self.cells.items()}
            draws = bootstrap.draw(self.kept.pictures[rows], kind)
            values[group] = measure(own, draws).reshape(values.shape[1:])
        return values


def summarise_steering(
    name: str,
    table: Table,
    settings: Mapping[str, Any],
    vectors: Sequence[SteeringVector],
    *,
    kind_depth: int | None,
    bootstrap: Bootstrap,
) -> AnalysisResult:
    """Return the numbers per kind, steer, layers and scale.

    Args:
        name: Name of the analysis.
        table: Rows, see `SteeringRow`.
        settings: What decided the rows.
        vectors: The vectors, for their norms.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; None for
            all.
        bootstrap: How intervals are drawn.
    """
    summary = SteeringSummary.of(table, _COLUMNS, kind_depth)
    values = summary.compute(bootstrap, MEASURES, _compute_measures)
    norms = {each.read_at: each.states.norm(dim=-1).tolist() for each in vectors}
    found = {**summary.found, "norms": norms, "read_from": dict(vectors[0].samples)}
    more = {"kind_depth": kind_depth, "bootstrap": asdict(bootstrap), "found": found}
    coords = {**summary.coords, "measure": MEASURES, "statistic": STATISTICS}
    return AnalysisResult(
        name,
        values,
        tuple(coords),
        coords,
        len(summary.kept.ids),
        {**settings, **more},
        tuple(make_steering_plots(coords, _SHOWN, "Questions (%)", f"Vector {vectors[0].name}")),
        make_steering_headline(values[0] if len(values) else values, coords),
    )


def _compute_measures(cells: Mapping[str, Floats], draws: BootstrapDraws) -> Floats:
    """Return the statistics of (questions, numbers) cells, (numbers, measures, 4).

    A question's share of random vectors counts as one answer, so that its interval is rather too
    wide than too narrow, and has a width at 0.
    """
    before = cells["before"]

    def mean(values: Floats) -> Floats:
        return bootstrap_estimate(bootstrap_mean(values), values, draws)

    measures = [
        bootstrap_share(cells["target"], draws.pictures, 100),
        bootstrap_share(cells["source"], draws.pictures, 100),
        mean(before),
        mean(cells["after"] - before),
        bootstrap_share(cells["random_target"], draws.pictures, 100),
        bootstrap_share(cells["random_source"], draws.pictures, 100),
        mean(cells["random_after"] - before),
        bootstrap_share(cells["random_as_strong"], draws.pictures, 100),
    ]
    return np.stack(measures, axis=1)


def make_steering_plots(
    coords: Mapping[str, tuple[Any, ...]], shown: Mapping[str, str], label: str, title: str
) -> list[ResultPlot]:
    """Return plots of measures per steer: over layers, and over scales where there are several.

    Args:
        coords: Coordinates of the result.
        shown: The measures that are drawn, and how they are called.
        label: What they are.
        title: Title of the figures.
    """
    plots = []
    layers, scales = coords["layers"], coords["scale"]
    for steer in coords["steer"]:
        slug = "".join(each if each.isalnum() else "_" for each in steer.replace("->", "_to_"))
        shared: dict[str, Any] = {"style": "lines", "y": "measure", "shown": shown, "label": label}
        if len(layers) > 1 or len(scales) == 1:
            nearest = min(scales, key=lambda scale: abs(scale - 1))
            plots.append(
                ResultPlot(
                    f"layers_{slug}",
                    x="layers",
                    fixed={"steer": steer, "scale": nearest},
                    xlabel="In front of layer",
                    title=f"{title}: {steer}, scale {nearest:g}",
                    **shared,
                )
            )
        for place in layers if len(scales) > 1 else ():
            plots.append(
                ResultPlot(
                    f"scales_{slug}_layer_{place}",
                    x="scale",
                    fixed={"steer": steer, "layers": place},
                    xlabel="Scale of the vector",
                    title=f"{title}: {steer}, in front of layer {place}",
                    **shared,
                )
            )
    return plots
