from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr  # type: ignore[import-untyped]

from lightning_mllm.statistics import correlation
from lightning_mllm.statistics.correlation import (
    Method,
    correlate,
    correlated_group_means,
    smallest_correlation_n,
    smallest_correlation_p,
)
from lightning_mllm.statistics.missing import Floats

METHODS: tuple[Method, ...] = ("pearson", "spearman")


def draw(seed: int, n: int, ties: bool = False) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, n))
    second = second + 0.7 * first
    return (first.round(), second.round()) if ties else (first, second)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [4, 30])
def test_correlations_are_scipys(n: int, ties: bool) -> None:
    first, second = draw(1, n, ties)

    assert correlate(first, second, "pearson").value == pytest.approx(
        pearsonr(first, second).statistic
    )
    assert correlate(first, second, "spearman").value == pytest.approx(
        spearmanr(first, second).statistic
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ties", [False, True])
def test_p_of_few_points_is_the_share_of_all_orders_that_are_as_far_from_0(
    method: Method, ties: bool
) -> None:
    first, second = draw(2, 6, ties)
    ours, theirs = (first, second) if method == "pearson" else (rankdata(first), rankdata(second))
    others = [
        np.corrcoef(ours, theirs[list(order)])[0, 1] for order in itertools.permutations(range(6))
    ]

    expected = np.mean(np.abs(others) >= abs(others[0]) - 1e-9)

    assert correlate(first, second, method).p == pytest.approx(expected)


def test_p_of_many_points_is_about_that_of_the_t_test() -> None:
    first, second = draw(7, 25)

    assert correlate(first, second, "pearson").p == pytest.approx(
        pearsonr(first, second).pvalue, rel=0.1
    )


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_the_same_order_has_the_smallest_p_that_n_points_can_have(n: int) -> None:
    first = np.arange(n, dtype=float)

    for second in (first**3, -(first**3)):
        assert correlate(first, second, "spearman").p == pytest.approx(smallest_correlation_p(n))


def test_from_the_smallest_n_on_the_same_order_is_significant() -> None:
    assert [smallest_correlation_n(tests) for tests in (1, 2, 6, 30)] == [5, 5, 6, 7]
    for tests in (1, 3, 10):
        n = smallest_correlation_n(tests)
        assert smallest_correlation_p(n) <= 0.05 / tests < smallest_correlation_p(n - 1)


@pytest.mark.parametrize("method", METHODS)
def test_the_interval_covers_the_truth_about_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    monkeypatch.setattr(correlation, "_DRAWN_ORDERS", 10)  # no p-value is looked at
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        first, other = rng.normal(size=(2, 40))
        found = correlate(first, 0.6 * first + 0.8 * other, method, resamples=400)
        truth = 0.6 if method == "pearson" else 6 / math.pi * math.asin(0.3)
        covered += found.interval.low <= truth <= found.interval.high

    assert 0.87 <= covered / 150 <= 0.99


def test_too_few_points_have_no_interval() -> None:
    assert math.isnan(correlate(*draw(0, 4), "pearson").interval.low)
    assert (
        correlate(*draw(0, 5), "pearson").interval.low
        < correlate(*draw(0, 5), "pearson").interval.high
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_points_in_one_order_have_no_interval_since_every_draw_of_them_is_in_it(sign: int) -> None:
    first = np.arange(7.0)

    for method, second in (("spearman", sign * first**3), ("pearson", sign * first / 3)):
        found = correlate(first, second, method)  # type: ignore[arg-type]
        assert found.value == pytest.approx(sign)
        assert math.isnan(found.interval.low)
        assert math.isnan(found.interval.high)
    assert (
        correlate(first, sign * first**3, "pearson").interval.low
        < correlate(first, sign * first**3, "pearson").interval.high
    )


def test_p_of_drawn_orders_counts_the_observed_one() -> None:
    first = np.arange(14.0)

    assert correlate(first, first**3, "spearman").p == pytest.approx(1 / 10_001)


def test_a_point_that_lacks_a_number_is_left_out() -> None:
    first, second = draw(3, 8)
    gappy = np.append(first, [1.0, np.nan]), np.append(second, [np.nan, 2.0])

    assert correlate(*gappy, "spearman") == correlate(first, second, "spearman")
    assert correlate(*gappy, "spearman").n == 8


def test_group_means_are_those_of_the_points_that_have_both_numbers() -> None:
    first, second = np.array([1.0, 3.0, 5.0, np.nan, 7.0]), np.array([1.0, 2.0, np.nan, 4.0, 6.0])

    ours, theirs = correlated_group_means(first, second, ["a", "a", "b", "c", "d"])

    assert (ours.tolist(), theirs.tolist()) == ([2.0, 7.0], [1.5, 6.0])


@pytest.mark.parametrize("points", [([], []), ([1.0], [2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_what_does_not_vary_has_no_correlation(points: tuple[list[float], list[float]]) -> None:
    found = correlate(np.array(points[0]), np.array(points[1]), "pearson")

    assert math.isnan(found.value)
    assert math.isnan(found.p)
    assert found.n == len(points[0])


def test_the_same_seed_draws_the_same() -> None:
    assert correlate(*draw(4, 12), "pearson") == correlate(*draw(4, 12), "pearson")
    assert correlate(*draw(4, 12), "pearson") != correlate(*draw(4, 12), "pearson", seed=1)
