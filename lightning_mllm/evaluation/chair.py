"""CHAIR: how much of what captions name is not in the picture (Rohrbach et al., 2018, arXiv 1809.02156).

    CHAIR_i = mentions of objects that are not there / mentions of objects
    CHAIR_s = captions with such a mention / captions

Beside them stands recall, the share of the objects that are there which a caption names: a caption that names nothing
is never wrong. The paper writes CHAIR_i with sets of objects, its released code counts every mention; `unique` chooses.

The intervals are Wilson's. Mentions of one caption are not independent: of those ratios N is the number of mentions
that, drawn one by one, would give the variance over captions (Korn and Graubard, 1998, Survey Methodology 24); where
all or none are right, the number of captions behind them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mllm.evaluation.answer_metrics import wilson
from lightning_mllm.evaluation.metrics import Interval


@dataclass(frozen=True)
class Mentions:
    """What a caption names, and what is there.

    Attributes:
        named: Objects in the order in which they are named, each as often as it is.
        there: The objects in the picture.
    """

    named: Sequence[str]
    there: Collection[str]

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """What is named and is not there, as often as it is named."""
        return tuple(name for name in self.named if name not in self.there)

    @property
    def missed(self) -> tuple[str, ...]:
        """What is there and is not named, sorted."""
        return tuple(sorted({*self.there} - {*self.named}))


@dataclass(frozen=True)
class Ratio:
    """A part of all that captions name, or that is there; from sums over captions.

    Attributes:
        captions: Captions that have any of it.
        whole: How much there is of it: sum of w over captions.
        part: How much of it is counted: sum of p.
        squares: Sums of w^2, w p and p^2.
    """

    captions: int
    whole: int
    part: int
    squares: tuple[int, int, int]

    @property
    def value(self) -> float:
        """The part; NaN of nothing."""
        return self.part / self.whole if self.whole else math.nan

    @property
    def interval(self) -> Interval:
        """95 %, over captions."""
        if not self.whole:
            return Interval(math.nan, math.nan)
        value, (ww, wp, pp) = self.value, self.squares
        variance = (pp - 2 * value * wp + value**2 * ww) / self.whole**2
        alone = value * (1 - value)  # variance of a single mention
        if not alone:
            return wilson(value, self.captions)
        return wilson(value, min(alone / variance, self.whole) if variance > 0 else self.whole)


@dataclass(frozen=True)
class ChairResult:
    """How much captions hallucinate.

    Attributes:
        n: Number of captions.
        hallucinating: How many of them name something that is not there.
        wrong: Mentions of objects, and of objects that are not there.
        found: Objects that are there, and that are named.
    """

    n: int
    hallucinating: int
    wrong: Ratio
    found: Ratio

    @property
    def chair_i(self) -> float:
        """Share of the mentions; NaN where nothing is named."""
        return self.wrong.value

    @property
    def chair_s(self) -> float:
        """Share of the captions."""
        return self.hallucinating / self.n

    @property
    def recall(self) -> float:
        """Share of what is there that is named; NaN where nothing is there."""
        return self.found.value

    def summary(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        return {
            "n": self.n,
            "chair_i": self.chair_i,
            "chair_i_interval_95": list(self.wrong.interval),
            "chair_s": self.chair_s,
            "chair_s_interval_95": list(wilson(self.chair_s, self.n)),
            "recall": self.recall,
            "recall_interval_95": list(self.found.interval),
            "mentions_per_caption": self.wrong.whole / self.n,
        }


class ChairMetrics(Metric):
    """Counts what captions name, across batches and processes.

    `compute` gives the counts, `result` the scores.

    Args:
        unique: Whether an object counts once per caption, however often it is named.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    captions: Tensor
    sums: Tensor

    def __init__(self, *, unique: bool = False) -> None:
        super().__init__()
        self.unique = unique
        self.add_state("captions", default=torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", default=torch.zeros(2, 6, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, captions: Iterable[Mentions]) -> None:
        """Count the captions of a batch, of which there may be none."""
        for caption in captions:
            named = [*dict.fromkeys(caption.named)] if self.unique else caption.named
            wrong = sum(name not in caption.there for name in named)
            there = {*caption.there}
            rows = [_sums(len(named), wrong), _sums(len(there), len(there & {*named}))]
            self.captions += torch.tensor([1, wrong > 0], device=self.captions.device)
            self.sums += torch.tensor(rows, device=self.sums.device)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the counts of all processes, int64.

        (2,): captions, and those that hallucinate. (2, 6): of mentions and hallucinated ones, and of objects that are
        there and named ones: captions that have any, sums of whole w and part p, of w^2, w p and p^2.
        """
        return self.captions, self.sums

    def result(self) -> ChairResult | None:
        """Return the scores over all processes; None if there was no caption."""
        (n, hallucinating), sums = (counts.tolist() for counts in self.compute())
        if not n:
            return None
        wrong, found = (Ratio(c, whole, part, (ww, wp, pp)) for c, whole, part, ww, wp, pp in sums)
        return ChairResult(n, hallucinating, wrong, found)


def _sums(whole: int, part: int) -> list[int]:
    return [int(whole > 0), whole, part, whole**2, whole * part, part**2]
