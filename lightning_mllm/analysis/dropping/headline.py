"""What a reader looks at first: the accuracy for each choice, where tokens are dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.statistics.interval import VALUE, N
from lightning_mllm.statistics.missing import Floats


def make_dropping_headline(
    values: Floats, coords: Mapping[str, tuple[Any, ...]], clean: float
) -> Headline:
    """Return the accuracy for each place (layer and share) and choice.

    Args:
        values: (places, choices, measures, 4), the statistics.
        coords: Coordinates of these axes.
        clean: The accuracy with nothing dropped, in percent.
    """
    rows = []
    for place, own in zip(coords["place"], values, strict=True):
        costs = own[:, 2]  # alike for all choices that there are
        there = costs[costs[:, N] > 0]
        operations = f"{there[0, VALUE]:.0f}" if len(there) else "-"
        most = own[own[:, 0, N].argmax(), 0] if len(own) else costs[0]
        accuracies = (format_estimate(each[0], 1) for each in own)
        rows.append((place, operations, *accuracies, format_count(most)))
    columns = ("dropped", "operations (%)", *coords["choice"], "N")
    caption = (
        f"Accuracy (%) without visual tokens from a layer on; with all of them it is {clean:.1f}. "
        "The columns say what decides which tokens stay."
    )
    return Headline(caption, columns, tuple(rows))
