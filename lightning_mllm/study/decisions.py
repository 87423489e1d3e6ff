"""When a claim about an order *holds*, *does not*, or is *undecided*: pure functions of estimates and of losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lightning_mllm.study.bootstrap import Estimate, Floats

ALPHA = 0.05
_MOST_PERMUTATIONS = 20_000


class Decision(StrEnum):
    """What is known of a claim."""

    HOLDS = "holds"
    DOES_NOT = "does not"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Outcome:
    """What a test of "this number is above 0" found.

    Attributes:
        value: The number.
        low: Of its 95 % interval; NaN where there is none.
        high: Likewise.
        p: Two-sided p-value.
        seeds: Number of seeds.
        samples: Number of test samples.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    samples: int


def difference_test(difference: Estimate, seeds: int, samples: int) -> Outcome:
    """Test a difference by its t statistic.

    With a single seed nothing is known of other seeds, and p is 1.

    Args:
        difference: Of two scores.
        seeds: Number of seeds.
        samples: Number of test samples.
    """
    if seeds < 2 or not difference.value:
        p = 1.0
    elif difference.variance:
        p = difference.p
    else:  # neither seeds nor samples differ: as unlikely as so many coins that all fall alike
        p = 2.0 ** (1 - samples)
    return Outcome(difference.value, *difference.interval, p, seeds, samples)


def trend_test(rates: Sequence[float], losses: Floats, samples: int, seed: int = 0) -> Outcome:
    """Test whether losses rise with rates: Spearman's correlation within each seed, averaged over the seeds.

    Under the null hypothesis the losses of a seed are exchangeable between rates. All permutations within seeds are
    counted where they are few, else 20,000 are drawn.

    Args:
        rates: (rates,).
        losses: (seeds, rates).
        samples: Number of test samples.
        seed: Of the drawing.
    """
    ranks = _standard_ranks(np.asarray(rates, dtype=np.float64)[None])[0]
    rows = _standard_ranks(losses)
    observed = float((rows @ ranks).mean())
    if _permutations(len(ranks), len(rows)) <= _MOST_PERMUTATIONS:
        orders = np.array(list(itertools.permutations(range(len(ranks)))))
        by_seed = [row[orders] @ ranks for row in rows]  # (permutations,) each
        null = np.array([sum(choice) for choice in itertools.product(*by_seed)]) / len(rows)
        extra = 0  # the observed order is one of them
    else:
        generator = np.random.default_rng(seed)
        shape = (_MOST_PERMUTATIONS, *rows.shape)
        shuffled = generator.permuted(np.broadcast_to(rows, shape).copy(), axis=2)
        null, extra = (shuffled @ ranks).mean(axis=1), 1
    near = 1e-12
    at_least = null >= observed - near if observed > 0 else null <= observed + near
    p = min(1.0, 2 * float(extra + at_least.sum()) / (extra + len(null)))
    return Outcome(observed, np.nan, np.nan, p, len(losses), samples)


def smallest_trend_p(rates: int, seeds: int) -> float:
    """Return the p-value of `trend_test` where the losses of each seed are in the order of the rates."""
    count = _permutations(rates, seeds)
    return min(1.0, 2 / count if count <= _MOST_PERMUTATIONS else 2 / (1 + _MOST_PERMUTATIONS))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.maximum.accumulate(np.minimum(np.asarray(p_values)[order] * factors, 1.0))
    return [float(value) for value in adjusted[np.argsort(order, kind="stable")]]


def decide(value: float, adjusted_p: float) -> Decision:
    """Decide whether a number is above 0."""
    if not adjusted_p <= ALPHA or value == 0:
        return Decision.UNDECIDED
    return Decision.HOLDS if value > 0 else Decision.DOES_NOT


def all_of(decisions: Sequence[Decision]) -> Decision:
    """Decide whether all claims hold: not if one does not; undecided if one is, or if there is none."""
    if Decision.DOES_NOT in decisions:
        return Decision.DOES_NOT
    holds = bool(decisions) and all(decision is Decision.HOLDS for decision in decisions)
    return Decision.HOLDS if holds else Decision.UNDECIDED


def _permutations(rates: int, seeds: int) -> int:
    """Return the number of orders of all seeds together."""
    return int(math.factorial(rates) ** seeds)


def _standard_ranks(values: Floats) -> Floats:
    """Return the ranks of each row, ties averaged, with mean 0 and length 1; a constant row becomes 0."""
    less = (values[:, None, :] < values[:, :, None]).sum(axis=2)
    equal = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    ranks = less + (equal - 1) / 2
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    standard: Floats = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    return standard
