"""What a reader looks at first in a sweep: what each block costs at most, and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.analysis.knockout.sweep import Sweep
from lightning_mllm.statistics.interval import VALUE
from lightning_mllm.statistics.missing import Floats

_CAPTION = (
    "Largest change of the first token's probability (%) by blocking attention in a window of "
    "layers. The interval is of that window alone, not of the choice among windows."
)


def make_flow_headline(values: Floats, blocks: Sequence[str], sweep: Sweep) -> Headline:
    """Return the window of each block in which it changes most.

    Args:
        values: (blocks, windows, 4), the statistics of the change.
        blocks: Names of the blocks, of the ceiling and of contrasts.
        sweep: What was blocked.
    """
    rows = []
    for block, own in zip(blocks, values, strict=True):
        change = own[:, VALUE]
        if not np.isfinite(change).any():
            rows.append((block, "-", "blocks nothing", "-"))
            continue
        most = int(np.nanargmax(np.abs(change)))
        _, start, stop = sweep.windows[most].tolist()
        layers = f"{start}" if stop - start == 1 else f"{start}-{stop - 1}"
        layers = "all" if block == "ceiling" else layers
        rows.append((block, layers, format_estimate(own[most], 1), format_count(own[most])))
    return Headline(_CAPTION, ("block", "layers", "change (%)", "N"), tuple(rows))
