"""Two models on the same samples: how their shares of right answers differ, and if it is chance.

Only samples that one of the two answers right and the other wrong tell them apart. McNemar's exact
test (1947, Psychometrika 12) asks whether these are as often right for one as for the other: its
p-value is that of a binomial test with a probability of one half. It takes samples as independent.
The interval of the difference does not: it is over pictures (`shares.share_difference_interval`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest  # type: ignore[import-untyped]

from lightning_mllm.statistics.interval import NO_INTERVAL, Interval
from lightning_mllm.statistics.shares import share_difference_interval


@dataclass(frozen=True)
class PairedShares:
    """Two shares of the same samples.

    Attributes:
        n: Number of samples.
        pictures: How many pictures they are about.
        ours: Share of the samples that our model has right.
        theirs: Share of the samples that the other model has right.
        interval: 95 % interval of `ours - theirs`; NaN where all samples are about one picture.
        won: Number of samples that only our model has right.
        lost: Number of samples that only the other model has right.
        p: Two-sided p-value of McNemar's exact test.
    """

    n: int
    pictures: int
    ours: float
    theirs: float
    interval: Interval
    won: int
    lost: int
    p: float

    @classmethod
    def of(cls, ours: ArrayLike, theirs: ArrayLike, pictures: ArrayLike) -> PairedShares:
        """Compare two models.

        Args:
            ours: (samples,) whether our model is right, of at least one sample.
            theirs: (samples,) whether the other model is right.
            pictures: (samples,), what each sample is about.
        """
        right, other = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
        names, numbers = np.unique(np.asarray(pictures), return_inverse=True)
        won, lost = int((right > other).sum()), int((right < other).sum())
        interval = NO_INTERVAL
        if len(names) > 1 or len(right) == 1:
            ends = share_difference_interval(right[:, None], other[:, None], numbers)
            interval = Interval(*ends[:, 0].tolist())
        return cls(
            n=len(right),
            pictures=len(names),
            ours=float(right.mean()),
            theirs=float(other.mean()),
            interval=interval,
            won=won,
            lost=lost,
            p=float(binomtest(won, won + lost).pvalue) if won + lost else 1.0,
        )
