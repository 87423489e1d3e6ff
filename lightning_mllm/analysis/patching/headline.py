"""What a reader looks at first in a sweep of patches: where each restores most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.statistics.interval import VALUE
from lightning_mllm.statistics.missing import Floats

_CAPTION = (
    "Share of the answers' logit difference that a patch restores at most, and what the same patch "
    "loses. The intervals are of these layers alone, not of the choice among them."
)


def make_patching_headline(
    values: Floats, patches: Sequence[str], layers: Sequence[str]
) -> Headline:
    """Return the layers of each patch in which it restores most.

    Args:
        values: (patches, layers, directions, 4), the statistics of the share.
        patches: Names of the patches and of contrasts.
        layers: Names of the windows.
    """
    rows: list[tuple[str, ...]] = []
    for patch, own in zip(patches, values, strict=True):
        restored = own[:, 0, VALUE]
        if not np.isfinite(restored).any():
            rows.append((patch, "-", "patches nothing", "-", "-"))
            continue
        most = int(np.nanargmax(np.abs(restored)))
        cells = [format_estimate(own[most, direction], 2) for direction in range(2)]
        rows.append((patch, layers[most], *cells, format_count(own[most, 0])))
    return Headline(_CAPTION, ("patch", "layers", "restored", "lost", "N"), tuple(rows))
