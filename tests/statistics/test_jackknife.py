"""The jackknife of a mean is the textbook's, and its intervals hold the truth about as promised."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student  # type: ignore[import-untyped]

from lightning_mllm.statistics.jackknife import (
    jackknife,
    jackknife_group,
    jackknife_of_means,
)


def test_with_a_sample_per_group_the_interval_of_a_mean_is_student_s() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3))

    found = jackknife_of_means(values, np.ones(12))

    half = student.ppf(0.975, 11) * values.std(0, ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(found[:, 0], values.mean(0))
    np.testing.assert_allclose(found[:, 1], values.mean(0) - half)
    np.testing.assert_allclose(found[:, 2], values.mean(0) + half)
    assert found[:, 3].tolist() == [12] * 3


def test_of_unequal_groups_the_pseudo_values_of_a_mean_are_the_groups_means() -> None:
    sizes = np.array([1.0, 5.0, 2.0, 8.0])
    means = np.array([0.3, -1.0, 2.0, 0.5])

    value, low, high, n = jackknife_of_means((means * sizes)[:, None], sizes)[0]

    expected = (means * sizes).sum() / 16
    variance = np.mean((means - expected) ** 2 / (16 / sizes - 1))
    half = student.ppf(0.975, 3) * np.sqrt(variance)
    np.testing.assert_allclose(
        [value, low, high, n], [expected, expected - half, expected + half, 16]
    )


def test_intervals_of_unequal_groups_hold_the_truth_about_as_often_as_they_say() -> None:
    generator, groups = np.random.default_rng(0), 12
    held = 0
    for _ in range(400):
        one, other = generator.normal(0.5, 1, size=(2, 200))
        which = generator.choice(groups, size=200, p=np.arange(1, 13) / 78)
        sizes = np.bincount(which, minlength=groups).astype(float)
        sums = np.stack([np.bincount(which, each, minlength=groups) for each in (one, other)])
        there = sizes > 0
        value = np.array(sums[0].sum() * sums[1].sum() / 200**2)
        left = 200 - sizes
        without = ((sums[0].sum() - sums[0]) * (sums[1].sum() - sums[1]) / left**2)[there]
        _, low, high, _ = jackknife(value, without, sizes[there])
        held += low <= 0.25 <= high

    assert 0.92 <= held / 400 <= 0.98


def test_of_one_group_there_is_no_interval() -> None:
    found = jackknife_of_means(np.array([[3.0], [0.0]]), np.array([2.0, 0.0]))

    np.testing.assert_array_equal(found, [[1.5, np.nan, np.nan, 2]])


def test_a_number_that_is_not_defined_has_no_samples() -> None:
    found = jackknife_of_means(np.array([[np.nan], [np.nan]]), np.array([2.0, 1.0]))

    np.testing.assert_array_equal(found, [[np.nan, np.nan, np.nan, 0]])


@pytest.mark.parametrize("groups", [2, 16])
def test_groups_are_of_about_the_same_size(groups: int) -> None:
    sizes = np.bincount(
        [jackknife_group(f"sample-{k}", 0, groups) for k in range(1600)], minlength=groups
    )

    assert sizes.min() > 0.7 * 1600 / groups
