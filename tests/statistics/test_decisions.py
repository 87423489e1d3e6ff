from __future__ import annotations

import numpy as np
import pytest

from lightning_mllm.statistics.answer_arrays import INVALID
from lightning_mllm.statistics.decisions import (
    Decision,
    decide,
    decide_all,
    decide_by_holm,
    decide_by_t_test,
)
from lightning_mllm.statistics.missing import Integers
from lightning_mllm.statistics.seeds_and_samples import (
    SeedEstimate,
    SeedResampler,
    SeedScores,
    difference_over_seeds,
    slope_over_seeds,
)

TARGETS = np.arange(120) % 4


def answers(seed: int, skill: float, seeds: int = 3) -> Integers:
    rng = np.random.default_rng(seed)
    guesses = rng.integers(0, 4, size=(seeds, 1, len(TARGETS)))
    return np.where(rng.random(guesses.shape) < skill, TARGETS, guesses)


def decision(higher: Integers, lower: Integers) -> Decision:
    resampler = SeedResampler(TARGETS, len(higher))
    scores = [resampler.score(each)["macro_f1"] for each in (higher, lower)]
    outcome = decide_by_t_test(difference_over_seeds(*scores), len(higher), len(TARGETS))
    return decide(outcome.value, outcome.p)


def test_a_clear_gap_holds_its_reverse_does_not_and_equal_answers_are_undecided() -> None:
    good, bad = answers(0, 0.8), answers(1, 0.4)

    assert decision(good, bad) is Decision.HOLDS
    assert decision(bad, good) is Decision.DOES_NOT
    assert decision(good, good) is Decision.UNDECIDED
    assert decision(answers(2, 0.6), answers(3, 0.6)) is Decision.UNDECIDED


def test_a_single_seed_decides_nothing() -> None:
    assert decision(answers(0, 1.0, seeds=1), answers(1, 0.0, seeds=1)) is Decision.UNDECIDED


def test_models_that_differ_by_their_seeds_alone_are_told_apart_in_5_percent_of_studies() -> None:
    """3 seeds, whose deviation of 0.1 outweighs that of many samples: 3 signs say nothing."""
    rng = np.random.default_rng(0)
    trials, told_apart = 1000, 0
    for _ in range(trials):
        draws = rng.integers(0, 3, size=(500, 2))
        observed = 0.6 + 0.1 * rng.standard_normal((2, 3))
        samples = 0.003 * rng.standard_normal((2, 500, 1))  # the same for all seeds
        higher, lower = (
            SeedScores(mean, mean + noise, draws)
            for mean, noise in zip(observed, samples, strict=True)
        )
        told_apart += decide_by_t_test(difference_over_seeds(higher, lower), 3, 10_000).p <= 0.05
    assert 25 <= told_apart <= 75  # 50 expected; more or less has probability 0.03 %


def test_what_never_varies_is_as_sure_as_coins_that_fall_alike() -> None:
    certain = SeedEstimate(value=0.5, variance=0.0, freedom=2.0)

    assert decide_by_t_test(certain, 3, 11).p == 2.0**-10
    assert decide_by_t_test(SeedEstimate(value=0.0, variance=0.0, freedom=2.0), 3, 11).p == 1


def test_equal_models_are_seldom_told_apart() -> None:
    told_apart = 0
    for trial in range(60):
        resampler = SeedResampler(TARGETS, 3, resamples=300, seed=trial)
        scores = [resampler.score(answers(1000 + 2 * trial + k, 0.6))["accuracy"] for k in (0, 1)]
        told_apart += decide_by_t_test(difference_over_seeds(*scores), 3, len(TARGETS)).p <= 0.05
    assert told_apart <= 8  # 3 expected at the nominal level; more than 8 has probability 0.2 %


def test_a_trend_is_the_slope_of_a_line_over_the_logarithm_of_the_rate() -> None:
    rng = np.random.default_rng(0)
    rates, draws = [1e-4, 1e-3, 3e-3], rng.integers(0, 5, size=(2000, 4))
    observed = rng.random((3, 5))
    scores = [
        SeedScores(each, each + 0.01 * rng.standard_normal((2000, 1)), draws) for each in observed
    ]

    found = slope_over_seeds(rates, scores)

    assert found.value == pytest.approx(np.polyfit(np.log10(rates), observed.mean(1), 1)[0])
    by_seed = [np.polyfit(np.log10(rates), observed[:, seed], 1)[0] for seed in range(5)]
    assert found.variance == pytest.approx(np.var(by_seed, ddof=1) / 5 + 0.01**2 / 1.18, rel=0.1)


def test_a_trend_holds_if_it_is_clear_in_seeds_and_samples_not_if_it_is_of_a_few_samples() -> None:
    rates, resampler = [1e-3, 3e-3, 1e-2], SeedResampler(TARGETS, 5)
    clear = [resampler.score(answers(k, 0.9 - 0.3 * k, seeds=5))["macro_f1"] for k in range(3)]
    same = answers(0, 0.6, seeds=1).repeat(5, axis=0)
    few = [
        resampler.score(np.where(np.arange(120) < k, INVALID, same))["macro_f1"] for k in range(3)
    ]

    fall, chance = (
        decide_by_t_test(slope_over_seeds(rates, scores), 5, 120) for scores in (clear, few)
    )

    assert decide(-fall.value, fall.p) is Decision.HOLDS
    assert decide(fall.value, fall.p) is Decision.DOES_NOT
    assert chance.value < 0
    assert (
        decide(-chance.value, chance.p) is Decision.UNDECIDED
    )  # although it falls in each of the five seeds


def test_holm_adjusts_as_published() -> None:
    assert decide_by_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert decide_by_holm([0.5, 0.9]) == [1.0, 1.0]


def test_all_claims_hold_only_if_each_does() -> None:
    holds, does_not, undecided = Decision.HOLDS, Decision.DOES_NOT, Decision.UNDECIDED

    assert decide_all([holds, holds]) is holds
    assert decide_all([holds, undecided]) is undecided
    assert decide_all([holds, undecided, does_not]) is does_not
    assert decide_all([]) is undecided
