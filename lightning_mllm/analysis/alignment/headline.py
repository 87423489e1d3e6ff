"""What a reader looks at first: the implicit alignment scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_mllm.analysis.core.headline import Headline, format_count, format_estimate

_CAPTION = "Implicit alignment: cosine similarity of perceptual and textual tokens, mean of layers."


def make_alignment_headline(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Headline:
    """Return the scores of all tokens, and of those that are not attention sinks.

    Args:
        scores: Tokens -> name -> value, ends of the interval and n.
    """
    rows = []
    for tokens, named in scores.items():
        for name, score in named.items():
            numbers = np.array([*score.values()], dtype=np.float64)
            rows.append((name, tokens, format_estimate(numbers), format_count(numbers)))
    return Headline(_CAPTION, ("score", "tokens", "value", "N"), tuple(rows))
