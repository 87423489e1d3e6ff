"""What a reader looks at first: how much can be skipped before the answers get worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.statistics.interval import HIGH
from lightning_mllm.statistics.missing import Floats

_CAPTION = (
    "Largest share of tokens (%) that skips a computation, from a layer on, before the accuracy is "
    "lower than without any skip; operations in percent of those without."
)


def make_skipping_headline(values: Floats, coords: Mapping[str, tuple[Any, ...]]) -> Headline:
    """Return, for each computation and first layer, the share before the accuracy falls.

    It falls where the whole interval of its change is below 0. Where answers are not scored, it is
    the largest share.

    Args:
        values: (computations, starts, shares, measures, 4), the statistics.
        coords: Coordinates of these axes.
    """
    rows = []
    for computation, of_starts in zip(coords["computation"], values, strict=True):
        for start, own in zip(coords["start"], of_starts, strict=True):
            falls = own[:, 1, HIGH] < 0  # (shares,), in order; not where it is NaN
            kept = int(np.argmax(falls)) - 1 if falls.any() else len(falls) - 1
            accuracy, _, operations, _, _ = own[max(kept, 0)]
            rows.append(
                (
                    computation,
                    start,
                    f"{coords['percent'][max(kept, 0)]:g}" if kept >= 0 else "none",
                    format_estimate(accuracy, 1),
                    format_estimate(operations, 1),
                    format_count(operations),
                )
            )
    columns = ("computation", "from", "share", "accuracy (%)", "operations (%)", "N")
    return Headline(_CAPTION, columns, tuple(rows))
