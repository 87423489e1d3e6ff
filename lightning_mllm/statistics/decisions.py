"""When a claim about an order *holds*, *does not*, or is *undecided*, given estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lightning_mllm.statistics.interval import ALPHA, Interval
from lightning_mllm.statistics.seeds_and_samples import SeedEstimate


class Decision(StrEnum):
    """What is known of a claim."""

    HOLDS = "holds"
    DOES_NOT = "does not"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class DecisionOutcome:
    """The result of a test of "this number is above 0".

    Attributes:
        value: The number that is tested.
        interval: The number's 95 % interval.
        p: Two-sided p-value of "the number is 0".
        seeds: Number of seeds of each model.
        samples: Number of test samples.
    """

    value: float
    interval: Interval
    p: float
    seeds: int
    samples: int


def decide_by_t_test(estimate: SeedEstimate, seeds: int, samples: int) -> DecisionOutcome:
    """Test whether a number is above 0, by its t statistic.

    A single seed says nothing about other seeds, and p is 1.

    Args:
        estimate: The number: a difference of scores, or a slope.
        seeds: Number of seeds.
        samples: Number of test samples.
    """
    if seeds < 2 or not estimate.value:
        p = 1.0
    elif estimate.variance:
        p = estimate.p
    else:  # zero variance: the sign test's probability that all samples agree
        p = 2.0 ** (1 - samples)
    return DecisionOutcome(estimate.value, estimate.interval, p, seeds, samples)


def decide_by_holm(p_values: Sequence[float]) -> list[float]:
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


def decide_all(decisions: Sequence[Decision]) -> Decision:
    """Decide whether all claims hold.

    They do not if one does not. That is undecided if one is undecided, or if there is no claim.
    """
    if Decision.DOES_NOT in decisions:
        return Decision.DOES_NOT
    holds = bool(decisions) and all(decision is Decision.HOLDS for decision in decisions)
    return Decision.HOLDS if holds else Decision.UNDECIDED
