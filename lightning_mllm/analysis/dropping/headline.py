"""What a reader looks at first: the accuracy for each choice, where tokens are dropped."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.statistics.interval import VALUE, N
from lightning_mllm.statistics.missing import Floats


def make_dropping_headline(values: Floats, coords: Mapping[str, tuple[Any, ...]]) -> Headline:
    """Return the accuracy for each layer, share and choice.

    Args:
        values: (layers, choices, percents, measures, 4), the statistics.
        coords: Coordinates of these axes.
    """
    rows = []
    places = product(enumerate(coords["layer"]), enumerate(coords["percent"]))
    for (row, layer), (column, percent) in places:
        own = values[row, :, column]  # (choices, measures, 4)
        costs = own[own[:, 2, N] > 0, 2]  # alike for all choices that there are
        if percent and len(costs):
            accuracies = (format_estimate(each[0], 1) for each in own)
            rows.append(
                (
                    f"{layer}, {percent:g} %",
                    f"{costs[0, VALUE]:.0f}",
                    *accuracies,
                    format_count(own[own[:, 0, N].argmax(), 0]),
                )
            )
    columns = ("layer, dropped", "operations (%)", *coords["choice"], "N")
    clean = values[:, :, coords["percent"].index(0.0), 0, VALUE]
    of_all = f"{clean[np.isfinite(clean)][0]:.1f}" if np.isfinite(clean).any() else "not known"
    caption = (
        f"Accuracy (%) without visual tokens from a layer on; with all of them it is {of_all}. "
        "The columns say what decides which tokens stay."
    )
    return Headline(caption, columns, tuple(rows))
