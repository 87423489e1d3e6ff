"""CHAIR: how much of what captions name is not in the picture (Rohrbach et al., 2018, arXiv 1809.02156).

    CHAIR_i = mentions of objects that are not there / mentions of objects
    CHAIR_s = captions with such a mention / captions

Beside them stands recall, the share of the objects that are there which a caption names: a caption that names nothing
is never wrong. The paper writes CHAIR_i with sets of objects, its released code counts every mention; `unique` chooses.

Intervals are over captions, each of which makes several mentions; see `statistics.shares`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mllm.statistics.shares import Share, wilson


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
    wrong: Share
    found: Share

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
        wrong, found = (Share(c, whole, part, (ww, wp, pp)) for c, whole, part, ww, wp, pp in sums)
        return ChairResult(n, hallucinating, wrong, found)


def _sums(whole: int, part: int) -> list[int]:
    return [int(whole > 0), whole, part, whole**2, whole * part, part**2]
