from __future__ import annotations

import numpy as np
import pytest

from lightning_mllm.study.bootstrap import Estimate, Integers, Resampler, Scores, difference
from lightning_mllm.study.decisions import (
    Decision,
    all_of,
    decide,
    difference_test,
    holm,
    smallest_trend_p,
    trend_test,
)

TARGETS = np.arange(120) % 4


def answers(seed: int, skill: float, seeds: int = 3) -> Integers:
    rng = np.random.default_rng(seed)
    guesses = rng.integers(0, 4, size=(seeds, 1, len(TARGETS)))
    return np.where(rng.random(guesses.shape) < skill, TARGETS, guesses)


def decision(higher: Integers, lower: Integers) -> Decision:
    resampler = Resampler(TARGETS, len(higher))
    scores = [resampler.score(each)["macro_f1"] for each in (higher, lower)]
    outcome = difference_test(difference(*scores), len(higher), len(TARGETS))
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
    """3 seeds, whose deviation of 0.1 is large beside that of many samples: the signs of 3 differences say nothing."""
    rng = np.random.default_rng(0)
    trials, told_apart = 1000, 0
    for _ in range(trials):
        draws = rng.integers(0, 3, size=(500, 2))
        observed = 0.6 + 0.1 * rng.standard_normal((2, 3))
        samples = 0.003 * rng.standard_normal((2, 500, 1))  # the same for all seeds
        higher, lower = (Scores(mean, mean + noise, draws) for mean, noise in zip(observed, samples, strict=True))
        told_apart += difference_test(difference(higher, lower), 3, 10_000).p <= 0.05
    assert 25 <= told_apart <= 75  # 50 expected; more or less has probability 0.03 %


def test_what_never_varies_is_as_sure_as_coins_that_fall_alike() -> None:
    certain = Estimate(value=0.5, variance=0.0, freedom=2.0)

    assert difference_test(certain, 3, 11).p == 2.0**-10
    assert difference_test(Estimate(value=0.0, variance=0.0, freedom=2.0), 3, 11).p == 1


def test_equal_models_are_seldom_told_apart() -> None:
    told_apart = 0
    for trial in range(60):
        resampler = Resampler(TARGETS, 3, resamples=300, seed=trial)
        scores = [resampler.score(answers(1000 + 2 * trial + k, 0.6))["accuracy"] for k in (0, 1)]
        told_apart += difference_test(difference(*scores), 3, len(TARGETS)).p <= 0.05
    assert told_apart <= 8  # 3 expected at the nominal level; more than 8 has probability 0.2 %


def test_a_trend_holds_if_losses_rise_with_the_rate_in_every_seed() -> None:
    rates = [1e-4, 3e-4, 1e-3, 3e-3]
    rising = np.array([[0.0, 0.1, 0.2, 0.5], [0.1, 0.2, 0.3, 0.4], [0.0, 0.05, 0.3, 0.2]])
    outcome = trend_test(rates, rising, samples=10)

    assert outcome.value == pytest.approx((1 + 1 + 0.8) / 3)  # Spearman's correlation of each seed
    assert decide(outcome.value, outcome.p) is Decision.HOLDS
    assert decide(-outcome.value, trend_test(rates, -rising, samples=10).p) is Decision.DOES_NOT
    flat = trend_test(rates, np.ones((3, 4)), samples=10)
    assert decide(flat.value, flat.p) is Decision.UNDECIDED


def test_a_trend_of_one_seed_has_the_exact_p_value() -> None:
    assert trend_test([1, 2, 3, 4], np.array([[1.0, 2, 3, 4]]), samples=1).p == pytest.approx(2 / 24)


@pytest.mark.parametrize(("rates", "seeds"), [(2, 1), (2, 3), (3, 3), (4, 3), (4, 5), (7, 1)])
def test_the_smallest_p_value_of_a_trend_is_that_of_losses_in_the_order_of_the_rates(rates: int, seeds: int) -> None:
    losses = np.tile(np.arange(rates, dtype=np.float64), (seeds, 1))

    found = trend_test(list(range(rates)), losses, samples=1).p

    assert found == pytest.approx(smallest_trend_p(rates, seeds), rel=1e-6, abs=5e-4)  # drawn ones may have it again


def test_many_permutations_are_drawn_instead_of_counted() -> None:
    losses = np.random.default_rng(0).random((5, 4))

    drawn = trend_test([1, 2, 3, 4], np.sort(losses), samples=1)

    assert drawn.value == pytest.approx(1)
    assert drawn.p < 0.001


def test_holm_adjusts_as_published() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_all_claims_hold_only_if_each_does() -> None:
    holds, does_not, undecided = Decision.HOLDS, Decision.DOES_NOT, Decision.UNDECIDED

    assert all_of([holds, holds]) is holds
    assert all_of([holds, undecided]) is undecided
    assert all_of([holds, undecided, does_not]) is does_not
    assert all_of([]) is undecided
