"""From rows of pointing to numbers per kind, layer and head, and to the heads that localise."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.analysis.attention.criteria import find_localising_heads
from lightning_mllm.analysis.core.headline import Headline, format_estimate
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.errors import ConfigError
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, VALUE, missing_interval
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
from lightning_mllm.store.seeds import seed_rank_of
from lightning_mllm.types import Table

POINTING, CHANCE, RANKING, REPORTING = (
    "pointing_percent",
    "chance_percent",
    "ranking_half_percent",
    "reporting_half_percent",
)
IMAGE, ENTROPY = "image_percent", "spatial_entropy"
MEASURES = (POINTING, CHANCE, "above_chance_points", RANKING, REPORTING, IMAGE, ENTROPY)
_COLUMNS = ("hit", "chance", "image", "entropy")
_PLOTS = {  # label, title
    POINTING: ("Pointing (%)", "How often a head's largest attention from LAST is on the object"),
    IMAGE: ("Attention (%)", "Attention from LAST to the image, head by head"),
    ENTROPY: ("Entropy (nats)", "Spatial entropy of attention from LAST, head by head"),
}

logger = logging.getLogger(__name__)


def summarise_pointing(
    table: Table,
    *,
    name: str,
    best: int,
    kinds: Sequence[str] | None,
    seed: int,
    kind_depth: int | None,
    bootstrap: Bootstrap,
    settings: Mapping[str, Any],
) -> AnalysisResult:
    """Return the numbers of rows, with their intervals, and name heads per kind.

    Args:
        table: Rows of `PointingRow`.
        name: Name of the result.
        best: How many heads are named by their pointing accuracy.
        kinds: How the names of the kinds begin that count; by default all.
        seed: Seed of the halves.
        kind_depth: How many parts of a kind's name (a/b/c) tell kinds apart; by default all.
        bootstrap: How intervals are drawn.
        settings: What decided the rows.

    Returns:
        On the axes kind, layer, head, measure and statistic; `found` of its settings names heads.
    """
    table = table if kinds is None else _keep_kinds(table, kinds)
    kept, measured = KeptQuestions.of(table, kind_depth), table["measured"]
    axes: dict[str, Sequence[Any]] = {
        axis: tuple(np.unique(table[axis][measured]).tolist()) for axis in ("layer", "head")
    }
    coords: dict[str, tuple[Any, ...]] = {
        "kind": tuple(kept.groups),
        **{axis: tuple(each) for axis, each in axes.items()},
        "measure": MEASURES,
        "statistic": STATISTICS,
    }
    values, ranking = missing_interval(coords), _is_ranking(kept.pictures, seed)
    cells = {}
    for column in _COLUMNS if len(kept.ids) else ():
        each = pivot_question_table(table, column, axes, kept.ids, measured)
        cells[column] = each.reshape(len(kept.ids), -1)
    groups = list(kept.groups.items()) if cells else []
    for index, (kind, rows) in enumerate(track(groups, f"{name}: intervals of kinds")):
        own = {column: each[rows] for column, each in cells.items()}
        numbers = _compute(own, ranking[rows], bootstrap.draw(kept.pictures[rows], kind))
        values[index] = numbers.reshape(values[index].shape)
    named = {kind: _name_heads(values[k], coords, best) for k, (kind, _) in enumerate(groups)}
    found = {
        "questions": count_questions(table, kind_depth),
        "pictures": kept.count_pictures(),
        "best": {kind: heads for kind, (heads, _) in named.items()},
        "criteria": {kind: criteria for kind, (_, criteria) in named.items()},
    }
    more: dict[str, Any] = {"best": best, "kinds": kinds, "seed": seed, "kind_depth": kind_depth}
    more |= {"bootstrap": asdict(bootstrap), "found": found}
    plots = tuple(_make_plot(measure, coords) for measure in _PLOTS) if cells else ()
    headline = _make_headline(values[0], coords, *next(iter(named.values()))) if named else None
    return AnalysisResult(
        name, values, tuple(coords), coords, len(kept.ids), {**settings, **more}, plots, headline
    )


def _keep_kinds(table: Table, kinds: Sequence[str]) -> Table:
    """Return rows of which only those of kinds that begin with these parts are measured.

    Raises:
        ConfigError: No kind does.
    """
    begins = tuple(f"{kind}/" for kind in kinds)
    counted = [f"{kind}/".startswith(begins) for kind in table["kind"]]
    if counted and not any(counted):
        there = ", ".join(sorted({str(kind) for kind in table["kind"]}))
        raise ConfigError(f"No question is of the kinds {', '.join(kinds)}; there are {there}.")
    return {**table, "measured": table["measured"] & np.array(counted, dtype=np.bool_)}


def _is_ranking(pictures: NDArray[Any], seed: int) -> NDArray[np.bool_]:
    """Return which questions rank heads, (questions,): those about half of the pictures."""
    names = np.unique(pictures)
    ordered = sorted(names.tolist(), key=lambda each: seed_rank_of(str(each), seed))
    return np.isin(pictures, ordered[: len(ordered) // 2])


def _compute(
    cells: Mapping[str, Floats], ranking: NDArray[np.bool_], draws: BootstrapDraws
) -> Floats:
    """Return the statistics of all heads, (heads, measures, 4).

    Args:
        cells: Column -> (questions, heads).
        ranking: (questions,), which rank heads; the others report.
        draws: Resamples of the questions.
    """
    hits, pictures = cells["hit"], draws.pictures

    def estimate(numbers: Floats) -> Floats:
        return bootstrap_estimate(bootstrap_mean(numbers), numbers, draws)

    halves = [np.where(half[:, None], hits, np.nan) for half in (ranking, ~ranking)]
    measures = [
        bootstrap_share(hits, pictures, 100),
        estimate(100 * cells["chance"]),
        estimate(100 * (hits - cells["chance"])),
        *(bootstrap_share(half, pictures, 100) for half in halves),
        estimate(100 * cells["image"]),
        estimate(cells["entropy"]),
    ]
    return np.stack(measures, axis=1)


def _name_heads(
    values: Floats, coords: Mapping[str, tuple[Any, ...]], best: int
) -> tuple[list[str], dict[str, Any]]:
    """Return the best heads on the ranking half, and what the criteria without boxes say.

    Args:
        values: (layers, heads, measures, 4).
        coords: Coordinates of these axes.
        best: How many heads are named.
    """
    means = values[..., VALUE].reshape(-1, len(MEASURES))
    names = [f"{layer}.{head}" for layer in coords["layer"] for head in coords["head"]]
    ranks = means[:, MEASURES.index(RANKING)]
    order = np.argsort(-ranks, kind="stable")[:best] if np.isfinite(ranks).all() else ()
    sums, entropies = means[:, MEASURES.index(IMAGE)], means[:, MEASURES.index(ENTROPY)]
    heads = find_localising_heads(sums, entropies)
    criteria = {
        "elbow_percent": heads.elbow,
        "kept": [names[head] for head in heads.kept],
        "chosen": [names[head] for head in heads.chosen],
    }
    return [names[head] for head in order], criteria


def _make_plot(measure: str, coords: Mapping[str, tuple[Any, ...]]) -> ResultPlot:
    label, title = _PLOTS[measure]
    return ResultPlot(
        measure.removesuffix("_percent"),
        "heat map",
        x="layer",
        y="head",
        shown={head: f"head {head}" for head in coords["head"]},
        fixed={"measure": measure},
        xlabel="Layer",
        label=label,
        title=title,
    )


def _make_headline(
    values: Floats,
    coords: Mapping[str, tuple[Any, ...]],
    best: Sequence[str],
    criteria: Mapping[str, Any],
) -> Headline:
    """Return the heads that are named, what they reach, and by which criterion they are named.

    Args:
        values: (layers, heads, measures, 4).
        coords: Coordinates of these axes.
        best: The best heads on the ranking half.
        criteria: What the criteria without boxes say.
    """
    rows = []
    for name in dict.fromkeys([*best, *criteria["chosen"]]):
        layer, head = (int(each) for each in name.split("."))
        own = values[coords["layer"].index(layer), coords["head"].index(head)]
        cells = [format_estimate(own[MEASURES.index(each)], 1) for each in (REPORTING, CHANCE)]
        first = format_estimate(own[MEASURES.index(RANKING), :1].repeat(4), 1).partition(" ")[0]
        by = [
            by for by, heads in (("boxes", best), ("criteria", criteria["chosen"])) if name in heads
        ]
        rows.append((f"{name}, by {' and '.join(by)}", first, *cells))
    caption = (
        "Heads (layer.head) that point at the object from the last position: ranked by boxes on "
        "one half of the pictures, reported on the other; or chosen by sum and spatial entropy."
    )
    return Headline(caption, ("head", "ranked (%)", "reported (%)", "chance (%)"), tuple(rows))
