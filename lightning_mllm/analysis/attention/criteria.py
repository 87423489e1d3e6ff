"""Which heads localise, without boxes: the criteria of Kang et al., arXiv 2503.06287.

First, a head has to look at the image: the sums of all heads are sorted, a chord goes from the
smallest to the largest, and the elbow is where the sums are farthest from it. A head is kept from
the elbow's sum on. The authors' code compares a head's place in the order of heads instead, which
says nothing of its sum; what the paper says is done here. Second, of these the heads with the
lowest spatial entropy are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_mllm.statistics.missing import Floats, Integers

_CHOSEN = 3


@dataclass(frozen=True, eq=False)
class LocalisingHeads:
    """What the criteria say of heads.

    Attributes:
        elbow: The sum on the image that a head has to reach.
        kept: Numbers of the heads that reach it.
        chosen: Numbers of the kept heads with the lowest entropy, the lowest first; none where
            entropies are not known.
    """

    elbow: float
    kept: Integers
    chosen: Integers


def find_elbow(sums: Floats) -> float:
    """Return the one of the numbers at which their sorted curve is farthest from its chord."""
    ordered = np.sort(sums)
    chord = np.linspace(ordered[0], ordered[-1], len(ordered))
    return float(ordered[np.abs(ordered - chord).argmax()])


def find_localising_heads(sums: Floats, entropies: Floats) -> LocalisingHeads:
    """Apply both criteria.

    Args:
        sums: (heads,), mean share of a head's attention that goes to the image.
        entropies: (heads,), mean spatial entropy; NaN where it is not known.
    """
    elbow = find_elbow(sums)
    kept = np.flatnonzero(sums >= elbow)
    known = kept[np.isfinite(entropies[kept])]
    chosen = known[np.argsort(entropies[known], kind="stable")][:_CHOSEN]
    return LocalisingHeads(elbow, kept, chosen)
