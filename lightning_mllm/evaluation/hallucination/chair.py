"""CHAIR: how many objects that captions name are not in the picture.

The measures are those of Rohrbach et al. (2018, arXiv 1809.02156):

    CHAIR_i = mentions of objects that are not there / mentions of objects
    CHAIR_s = captions with such a mention / captions

Recall is reported beside them, the fraction of the objects in the picture that a caption names: a
caption that names nothing is never wrong. The paper defines CHAIR_i by sets of objects, its
released code counts every mention; `unique` chooses.

Intervals are over captions, each of which makes several mentions; see `statistics.shares`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mllm.statistics.shares import Share, wilson_share_interval


@dataclass(frozen=True)
class Mentions:
    """What a caption names, and what is in the picture.

    Attributes:
        named: Objects in the order in which they are named, each as often as it is named.
        there: The objects in the picture.
    """

    named: Sequence[str]
    there: Collection[str]

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """Objects that are named and not in the picture, each as often as it is named."""
        return tuple(name for name in self.named if name not in self.there)

    @property
    def missed(self) -> tuple[str, ...]:
        """Objects in the picture that are not named, sorted."""
        return tuple(sorted({*self.there} - {*self.named}))


@dataclass(frozen=True)
class ChairResult:
    """How much captions hallucinate.

    Attributes:
        n: Number of captions.
        hallucinating: How many of them name an object that is not in the picture.
        wrong: Share of all mentions of objects that are of objects not in the picture.
        found: Share of the objects in the pictures that are named.
    """

    n: int
    hallucinating: int
    wrong: Share
    found: Share

    @property
    def chair_i(self) -> float:
        """Fraction of mentions that are of objects not in the picture; NaN if nothing is named."""
        return self.wrong.value

    @property
    def chair_s(self) -> float:
        """Fraction of captions that name an object not in the picture."""
        return self.hallucinating / self.n

    @property
    def recall(self) -> float:
        """Fraction of the objects in the pictures that are named; NaN if there are none."""
        return self.found.value

    def summary(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON."""
        return {
            "n": self.n,
            "chair_i": self.chair_i,
            "chair_i_interval_95": list(self.wrong.interval),
            "chair_s": self.chair_s,
            "chair_s_interval_95": list(wilson_share_interval(self.chair_s, self.n)),
            "recall": self.recall,
            "recall_interval_95": list(self.found.interval),
            "mentions_per_caption": self.wrong.whole / self.n,
        }


class ChairMetrics(Metric):
    """Counts what captions name, across batches and processes.

    `compute` returns the counts, `result` the scores.

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
        """Count the captions of a batch; there may be none."""
        for caption in captions:
            named = [*dict.fromkeys(caption.named)] if self.unique else caption.named
            wrong = sum(name not in caption.there for name in named)
            there = {*caption.there}
            found = len(there & {*named})
            rows = [_make_sums(len(named), wrong), _make_sums(len(there), found)]
            self.captions += torch.tensor([1, wrong > 0], device=self.captions.device)
            self.sums += torch.tensor(rows, device=self.sums.device)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the counts of all processes, int64.

        Returns:
            (2,): the number of captions, and of those that hallucinate. (2, 6): first for mentions
            (whole) and hallucinated ones (part), then for objects in the picture (whole) and named
            ones (part): the number of captions with a whole w above 0, and the sums over captions
                of
            w, of the part p, and of w^2, w p and p^2.
        """
        return self.captions, self.sums

    def result(self) -> ChairResult | None:
        """Return the scores over all processes; None if there was no caption."""
        captions, sums = self.compute()
        n, hallucinating = captions.tolist()
        if not n:
            return None
        wrong, found = map(_make_share, sums.tolist())
        return ChairResult(n, hallucinating, wrong, found)


def _make_share(sums: list[int]) -> Share:
    """Return the share of a row of `ChairMetrics.sums`; captions take the place of pictures."""
    captions, whole, part, *squares = sums
    return Share(captions, whole, part, (squares[0], squares[1], squares[2]))


def _make_sums(whole: int, part: int) -> list[int]:
    return [int(whole > 0), whole, part, whole**2, whole * part, part**2]
