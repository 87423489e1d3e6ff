"""From log-likelihoods per sample and picture to differences, shares and matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.headline import Headline
from lightning_mllm.analysis.core.result import AnalysisResult, ResultPlot
from lightning_mllm.analysis.grounding.headline import make_grounding_headline
from lightning_mllm.analysis.grounding.rows import BLIND, OTHERS, OWN, SHUFFLED
from lightning_mllm.progress import track
from lightning_mllm.statistics.interval import STATISTICS, N, missing_interval
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

PICTURES = (OWN, OTHERS, BLIND, SHUFFLED)
SHOWN = {OTHERS: "another's", BLIND: "blank", SHUFFLED: "own, shuffled"}
MEASURES = (
    "log_likelihood_nats",  # of the answer with these pictures
    "own_likelier_by_nats",  # than with these
    "own_likelier_percent",  # of the pairs of a sample and such a picture; a tie is half of one
    "own_found_percent",  # of the samples: the own picture is the likeliest; a tie is shared
)


def summarise_grounding(
    name: str,
    table: Table,
    settings: Mapping[str, Any],
    *,
    others: int,
    kind_depth: int | None,
    bootstrap: Bootstrap,
) -> AnalysisResult:
    """Return the numbers per kind and picture.

    Args:
        name: Name of the analysis.
        table: Rows, see `GroundingRow`.
        settings: What decided the rows.
        others: With how many other pictures each sample is scored.
        kind_depth: How many parts of a kind's name, between slashes, tell kinds apart; None for
            all.
        bootstrap: How intervals are drawn.
    """
    kept = KeptQuestions.of(table, kind_depth)
    coords: dict[str, tuple[Any, ...]] = {
        "kind": tuple(kept.groups),
        "picture": PICTURES,
        "measure": MEASURES,
        "among": (others + 1,),
        "statistic": STATISTICS,
    }
    conditions = (OWN, BLIND, SHUFFLED, *(str(number + 1) for number in range(others)))
    scores = pivot_question_table(
        table, "log_likelihood", {"condition": conditions}, kept.ids, table["measured"]
    )
    values = missing_interval(coords)
    kinds = kept.groups.items() if len(kept.ids) else ()
    for index, (kind, rows) in enumerate(track(kinds, f"{name}: intervals of kinds")):
        draws = bootstrap.draw(kept.pictures[rows], kind)
        values[index, ..., 0, :] = _compute_measures(scores[rows], draws)
    found = {"samples": count_questions(table, kind_depth), "pictures": kept.count_pictures()}
    return AnalysisResult(
        name,
        values,
        tuple(coords),
        coords,
        len(kept.ids),
        {**settings, "kind_depth": kind_depth, "bootstrap": asdict(bootstrap), "found": found},
        _make_plots() if len(kept.ids) else (),
        _make_headline(values[..., 0, :], coords["kind"], others) if len(kept.ids) else None,
    )


def _compute_measures(scores: Floats, draws: BootstrapDraws) -> Floats:
    """Return the statistics of some samples, (pictures, measures, 4).

    Args:
        scores: (samples, own, blind, shuffled and others).
        draws: Resamples of the samples.
    """
    own = scores[:, :1]
    shown = {OWN: own, OTHERS: scores[:, 3:], BLIND: scores[:, 1:2], SHUFFLED: scores[:, 2:3]}
    values = missing_interval({"picture": PICTURES, "measure": MEASURES, "statistic": STATISTICS})
    for number, name in enumerate(PICTURES):
        with_these = shown[name]
        mean = with_these.mean(axis=1, keepdims=True)
        values[number, 0] = bootstrap_estimate(bootstrap_mean(mean), mean, draws)[0]
        if name == OWN:
            continue
        ahead = own - mean
        values[number, 1] = bootstrap_estimate(bootstrap_mean(ahead), ahead, draws)[0]
        wins = np.where(own == with_these, 0.5, own > with_these)  # (samples, such pictures)
        pairs = np.repeat(draws.pictures, wins.shape[1])
        values[number, 2] = bootstrap_share(wins.reshape(-1, 1), pairs, 100)[0]
        values[number, 2, N] = len(scores)
    likeliest = (own >= shown[OTHERS]).all(axis=1)
    ties = (own == shown[OTHERS]).sum(axis=1)
    right = np.where(likeliest, 1 / (1 + ties), 0.0)[:, None]
    values[PICTURES.index(OTHERS), 3] = bootstrap_share(right, draws.pictures, 100)[0]
    return values


def _make_headline(values: Floats, kinds: tuple[str, ...], others: int) -> Headline:
    """Return the main numbers of (kinds, pictures, measures, 4) statistics."""
    shown = {PICTURES.index(picture): label for picture, label in SHOWN.items()}
    return make_grounding_headline(values, kinds, shown, others)


def _make_plots() -> tuple[ResultPlot, ...]:
    plots = []
    for name, measure, label, chance in (
        ("likelier_by", 1, "Own picture likelier by (nats per answer)", None),
        ("likelier", 2, "Own picture likelier (%)", 50.0),
    ):
        plots.append(
            ResultPlot(
                name,
                "lines",
                x="among",
                y="picture",
                shown=SHOWN,
                fixed={"measure": MEASURES[measure]},
                xlabel="Pictures",
                label=label,
                title="The answer with its own picture, against another",
                chance=chance,
            )
        )
    return tuple(plots)
