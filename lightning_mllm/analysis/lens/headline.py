"""What a reader looks at first: from which layer on the answer is the likeliest word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate
from lightning_mllm.statistics.interval import VALUE
from lightning_mllm.statistics.missing import Floats

_CAPTION = (
    "Layer from which on the answer's first token leads the vocabulary in half of the questions, "
    "and its probability (%) at the last layer."
)


def make_lens_headline(values: Floats, kinds: Sequence[str], layers: Sequence[int]) -> Headline:
    """Return, for each kind, from which layer on the answer leads.

    Args:
        values: (kinds, spellings of the answer, layers, measures, 4): the statistics of its
            probability and of its median rank.
        kinds: Names of the kinds.
        layers: Numbers of the layers; empty where nothing is measured.
    """
    rows = []
    for kind, own in zip(kinds, values if layers else (), strict=False):
        leads = np.nanmin(np.where(np.isnan(own[..., 1, VALUE]), np.inf, own[..., 1, VALUE]), 0) < 1
        behind = np.flatnonzero(~leads)
        first = int(behind[-1]) + 1 if len(behind) else 0
        last = own[:, -1, 0]  # (spellings, statistics)
        spelling = int(np.argmax(np.nan_to_num(last[:, VALUE], nan=-1)))
        layer = str(layers[first]) if first < len(layers) else "never"
        if np.isnan(own[..., 1, VALUE]).all():
            layer = "-"  # no answer has a word of its own
        rows.append((kind, layer, format_estimate(last[spelling], 1), format_count(last[spelling])))
    return Headline(_CAPTION, ("kind", "leads from", "probability (%)", "N"), tuple(rows))
