"""How often studies in which nothing is true show a verdict, and how often planted effects do.

Scores are means over test pictures, so that all studies are resampled at once; a law below holds
these resamples against those of `SeedResampler.score`. What differs between models is drawn: for
each training seed, for each test picture (the same for all seeds), for each answer, and, of probes,
for the training samples: what they are in this study, and in each half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from scipy.stats import binomtest  # type: ignore[import-untyped]

from lightning_mllm.statistics.correlation import correlate, correlated_group_means
from lightning_mllm.statistics.decisions import Decision, decide, decide_by_t_test
from lightning_mllm.statistics.interval import ALPHA
from lightning_mllm.statistics.seeds_and_samples import (
    SeedEstimate,
    SeedResampler,
    SeedScores,
    difference_over_seeds,
    slope_over_seeds,
)

STUDIES = 2000
SEEDS, PICTURES, HALVES, RESAMPLES = 5, 120, 20, 400
RATES = (1e-3, 3e-3, 1e-2)
ORIGINS, STEPS = 7, 4  # of checkpoints
# share of the variance that single answers make; the rest is of seeds, pictures, training samples
OF_ANSWERS = 0.1
TARGETS = np.arange(PICTURES) % 4

Shares = tuple[
    float, float
]  # of the variance of a difference: between seeds, and between training samples
MODELS: tuple[Shares, ...] = ((0.0, 0.0), (0.5, 0.0), (0.9, 0.0))
PROBES: tuple[Shares, ...] = ((0.0, 0.5), (0.3, 0.3), (0.9, 0.1), (0.0, 0.9))


def studies(
    rng: np.random.Generator, shares: Shares, means: Sequence[float]
) -> Iterator[list[SeedScores]]:
    """Yield the scores of the models of each study.

    Args:
        rng: What is drawn is drawn from it.
        shares: Of the variance.
        means: Of each model, in standard errors of a difference of two.
    """
    halves = HALVES if shares[1] else 1
    resampler = SeedResampler(TARGETS, SEEDS, halves, RESAMPLES)
    of_pictures = max(1 - sum(shares) - OF_ANSWERS, 0.0)
    weights = resampler.weights / PICTURES
    for _ in range(STUDIES):
        models = []
        for mean in means:
            by_seed = np.sqrt(shares[0] * SEEDS) * rng.standard_normal((SEEDS, 1))
            by_picture = np.sqrt(of_pictures * PICTURES) * rng.standard_normal(PICTURES)
            by_answer = np.sqrt(OF_ANSWERS * PICTURES * SEEDS) * rng.standard_normal(
                (SEEDS, PICTURES)
            )
            trained = np.sqrt(shares[1]) * rng.standard_normal(1 + halves)
            answers = mean + (by_seed + by_picture + by_answer + trained[0]) / np.sqrt(2)
            resampled = weights @ answers.T + trained[1:][resampler.halves, None] / np.sqrt(2)
            models.append(SeedScores(answers.mean(axis=1), resampled, resampler.draws))
        yield models


def share_decided(
    found: Iterator[SeedEstimate], expected: Decision | None = None
) -> tuple[float, float]:
    """Return the share of studies with a verdict, or this one, and its interval's lower end."""
    return share_of(
        [decide(each.value, decide_by_t_test(each, SEEDS, PICTURES).p) for each in found], expected
    )


def share_of(decisions: Sequence[Decision], expected: Decision | None) -> tuple[float, float]:
    """Return the share of a decision, or any but "undecided", and its 95 % interval's lower end."""
    count = sum(
        each is not Decision.UNDECIDED if expected is None else each is expected
        for each in decisions
    )
    return count / len(decisions), binomtest(count, len(decisions)).proportion_ci(
        method="wilson"
    ).low


def differences(seed: int, shares: Shares, effect: float) -> Iterator[SeedEstimate]:
    for higher, lower in studies(np.random.default_rng(seed), shares, (effect, 0.0)):
        yield difference_over_seeds(higher, lower)


def trends(seed: int, shares: Shares, effect: float) -> Iterator[SeedEstimate]:
    positions = np.log10(RATES) - np.log10(RATES).mean()
    error = np.sqrt(0.5 / (positions @ positions))  # of the slope; a difference of two models has 1
    for models in studies(np.random.default_rng(seed), shares, tuple(effect * error * positions)):
        yield slope_over_seeds(RATES, models)


def share_correlated(
    seed: int, share: float, correlation: float, expected: Decision | None = None
) -> tuple[float, float]:
    """Return `share_decided` of studies of checkpoints.

    Args:
        seed: Of the drawing.
        share: Of the variance of each of the two numbers, between origins.
        correlation: Of the two numbers.
        expected: Which verdict; None for any.
    """
    rng = np.random.default_rng(seed)
    groups = [str(origin) for origin in range(ORIGINS) for _ in range(STEPS)]
    of_origins = rng.standard_normal((2, STUDIES, ORIGINS)).repeat(STEPS, axis=2)
    numbers = np.sqrt(share) * of_origins + np.sqrt(1 - share) * rng.standard_normal(
        (2, STUDIES, ORIGINS * STEPS)
    )
    numbers[1] = correlation * numbers[0] + np.sqrt(1 - correlation**2) * numbers[1]
    pairs = (
        correlated_group_means(ours, theirs, groups) for ours, theirs in zip(*numbers, strict=True)
    )
    found = (correlate(*pair, "spearman", resamples=2) for pair in pairs)
    return share_of([decide(each.value, each.p) for each in found], expected)


KINDS: dict[str, Callable[[int, Shares, float], Iterator[SeedEstimate]]] = {
    "difference": differences,
    "trend": trends,
}
each_origin = pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
each_kind = pytest.mark.parametrize("kind", KINDS)
each_share = pytest.mark.parametrize("shares", MODELS + PROBES, ids=str)


@pytest.mark.slow
@each_kind
@each_share
def test_a_study_in_which_nothing_is_true_shows_a_verdict_in_5_percent_at_most(
    kind: str, shares: Shares
) -> None:
    _, low = share_decided(KINDS[kind](1, shares, 0.0))

    assert low <= ALPHA


@pytest.mark.slow
@each_kind
@each_share
def test_an_effect_of_4_standard_errors_gets_its_verdict_in_80_percent_at_least(
    kind: str, shares: Shares
) -> None:
    share, _ = share_decided(KINDS[kind](2, shares, 4.0), Decision.HOLDS)

    assert share >= 0.8


@pytest.mark.slow
@each_origin
def test_a_correlation_over_nothing_but_chance_shows_a_verdict_in_5_percent_at_most(
    share: float,
) -> None:
    _, low = share_correlated(3, share, 0.0)

    assert low <= ALPHA


@pytest.mark.slow
@each_origin
def test_a_correlation_of_4_standard_errors_gets_its_verdict_in_80_percent_at_least(
    share: float,
) -> None:
    found, _ = share_correlated(4, share, float(np.tanh(4 / np.sqrt(ORIGINS - 3))), Decision.HOLDS)

    assert found >= 0.8


def test_the_scores_of_these_studies_are_resampled_as_those_of_real_ones() -> None:
    rng = np.random.default_rng(0)
    resampler = SeedResampler(TARGETS, SEEDS, HALVES, RESAMPLES)
    right, of_halves = (rng.random((SEEDS, count, PICTURES)) < 0.6 for count in (1, HALVES))
    said = (np.where(each, TARGETS, (TARGETS + 1) % 4) for each in (right, of_halves))

    scores = resampler.score(*said)["accuracy"]

    drawn = of_halves[:, resampler.halves]  # (seeds, resamples, pictures)
    np.testing.assert_allclose(scores.observed, right[:, 0].mean(axis=1))
    np.testing.assert_allclose(scores.resampled, (drawn * resampler.weights).mean(axis=2).T)
