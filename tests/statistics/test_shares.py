"""Laws of the intervals of shares, their differences and ratios: coverage, ends, pictures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_mllm.statistics.missing import Floats
from lightning_mllm.statistics.shares import (
    Share,
    share_difference_interval,
    share_interval,
    share_ratio_interval,
    wilson_share_interval,
)

STUDIES = 1000
MIXED = (1, 2, 3)  # questions about a picture


def pictures_of(n: int, sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the picture's number for each of n questions, pictures of these sizes taking turns."""
    return np.repeat(np.arange(n), np.resize(sizes, n))[:n]


def studies(
    generator: np.random.Generator, pictures: NDArray[np.int64], alike: float, *chances: float
) -> Floats:
    """Draw outcomes, (questions, studies), with these chances; a share `alike` the picture's."""
    cells = len(chances)
    shared = generator.choice(cells, p=chances, size=(pictures.max() + 1, STUDIES))[pictures]
    own = generator.choice(cells, p=chances, size=shared.shape)
    return np.where(generator.random(shared.shape) < np.sqrt(alike), shared, own).astype(np.float64)


def coverage(ends: Floats, truth: float) -> float:
    return float(((ends[0] <= truth) & (truth <= ends[1])).mean())


@pytest.mark.parametrize(("sizes", "alike"), [((1,), 0.0), ((2,), 0.3), (MIXED, 0.0), (MIXED, 0.5)])
@pytest.mark.parametrize("n", [22, 200])
@pytest.mark.parametrize("p", [0.01, 0.05, 0.5, 0.99])
def test_the_interval_covers_the_truth(
    p: float, n: int, sizes: tuple[int, ...], alike: float
) -> None:
    pictures = pictures_of(n, sizes)
    counted = studies(np.random.default_rng(1), pictures, alike, 1 - p, p)

    assert coverage(share_interval(counted, pictures), p) >= 0.93


@pytest.mark.parametrize("both", [0.9, 0.5])
@pytest.mark.parametrize(("sizes", "alike"), [((1,), 0.0), (MIXED, 0.4)])
@pytest.mark.parametrize("n", [22, 200])
def test_intervals_of_differences_and_ratios_cover_the_truth(
    n: int, sizes: tuple[int, ...], alike: float, both: float
) -> None:
    pictures, ours_alone, theirs_alone = pictures_of(n, sizes), 0.06, 0.02
    chances = (1 - both - ours_alone - theirs_alone, both, ours_alone, theirs_alone)
    cells = studies(np.random.default_rng(0), pictures, alike, *chances)
    ours, theirs = (np.isin(cells, which).astype(np.float64) for which in ((1, 2), (1, 3)))

    difference = share_difference_interval(ours, theirs, pictures)
    ratio = share_ratio_interval(ours, theirs, pictures)

    assert coverage(difference, ours_alone - theirs_alone) >= 0.93
    assert coverage(ratio, (both + ours_alone) / (both + theirs_alone)) >= 0.93


@pytest.mark.parametrize("n", [2, 7, 22])
def test_where_each_picture_has_one_question_the_interval_is_wilsons(n: int) -> None:
    for part in range(n + 1):
        counted = (np.arange(n) < part)[:, None].astype(np.float64)

        low, high = share_interval(counted, np.arange(n))[:, 0]

        assert (low, high) == pytest.approx(wilson_share_interval(part / n, n))
        assert Share.alone(part, n).interval == wilson_share_interval(part / n, n)


@pytest.mark.parametrize("sizes", [(1,), (2,), MIXED])
def test_no_interval_is_empty_and_all_hold_the_estimate(sizes: tuple[int, ...]) -> None:
    pictures = pictures_of(22, sizes)
    ours = np.triu(np.ones((23, 23)))[:22]  # columns of 1, 2, .. ones
    ours[:, -1] = 0
    zeros, ones = np.zeros_like(ours), np.ones_like(ours)

    low, high = share_interval(ours, pictures)
    mean = ours.mean(axis=0)
    assert ((low <= mean) & (mean <= high) & (high - low > 0.1) & (low >= 0) & (high <= 1)).all()
    for theirs in (zeros, ones, ours):
        low, high = share_difference_interval(ours, theirs, pictures)
        value = mean - theirs.mean(axis=0)
        assert (
            (low <= value) & (value <= high) & (high - low > 0.1) & (low >= -1) & (high <= 1)
        ).all()
    low, high = share_ratio_interval(ours, ones, pictures)
    assert ((low <= mean) & (mean <= high) & (high - low > 0.1)).all()


@pytest.mark.parametrize("of", ["share", "difference", "ratio"])
def test_with_more_of_the_same_pictures_an_interval_is_never_wider(of: str) -> None:
    generator = np.random.default_rng(2)
    ours, theirs = (generator.random((22, 50)) < np.linspace(0, 1, 50) for _ in range(2))
    widths = []
    for times in (1, 2, 4):
        own, other = (np.tile(each.astype(np.float64), (times, 1)) for each in (ours, theirs))
        pictures = (pictures_of(22, MIXED) + 22 * np.arange(times)[:, None]).ravel()
        low, high = {
            "share": lambda x, _, at: share_interval(x, at),
            "difference": share_difference_interval,
            "ratio": share_ratio_interval,
        }[of](own, other, pictures)
        widths.append(high - low)

    there = ~np.isnan(widths[0])
    assert there.sum() >= 45  # the others have a ratio to 0
    assert (np.diff(widths, axis=0)[:, there] < 0).all()


def test_a_difference_and_a_ratio_are_told_by_swapping_sides() -> None:
    generator = np.random.default_rng(3)
    ours, theirs = (generator.random((40, 30)).round() for _ in range(2))
    pictures = pictures_of(40, MIXED)

    low, high = share_difference_interval(ours, theirs, pictures)
    np.testing.assert_allclose(
        share_difference_interval(theirs, ours, pictures), [-high, -low], atol=1e-12
    )
    low, high = share_ratio_interval(ours, np.ones_like(ours), np.arange(40))
    np.testing.assert_allclose([low, high], share_interval(ours, np.arange(40)), atol=1e-12)


def test_bounds_of_a_difference_are_those_that_tangos_test_just_accepts() -> None:
    ours, theirs = np.zeros((44, 1)), np.zeros((44, 1))
    ours[:43], theirs[:44] = 1, 1  # one pair differs

    (low,), (high,) = share_difference_interval(ours, theirs, np.arange(44))

    for delta in (low, high):
        linear = -1 + (2 * 44 + 1) * delta
        q = (np.sqrt(linear**2 + 8 * 44 * delta * (1 - delta)) - linear) / (4 * 44)
        score = (-1 - 44 * delta) / np.sqrt(44 * (2 * q + delta * (1 - delta)))
        assert abs(score) == pytest.approx(1.959964, abs=1e-6)


def test_questions_that_say_nothing_new_make_no_interval_narrower() -> None:
    generator = np.random.default_rng(4)
    ours, theirs = (generator.random((30, 20)).round() for _ in range(2))
    once, thrice = np.arange(30), np.repeat(np.arange(30), 3)

    for of in (share_difference_interval, share_ratio_interval):
        repeated = of(np.repeat(ours, 3, axis=0), np.repeat(theirs, 3, axis=0), thrice)
        np.testing.assert_allclose(repeated, of(ours, theirs, once), atol=1e-9)
    repeated = share_interval(np.repeat(ours, 3, axis=0), thrice)
    np.testing.assert_allclose(repeated, share_interval(ours, once), atol=1e-9)


def test_several_questions_about_one_picture_have_no_interval() -> None:
    counted, pictures = np.array([[1.0, 1.0], [0.0, np.nan], [np.nan, 0.0]]), np.array([0, 0, 1])

    low, high = share_interval(counted, pictures)

    assert np.isnan([low[0], high[0]]).all()
    assert (low[1], high[1]) == pytest.approx(wilson_share_interval(0.5, 2))


def test_sums_over_pictures_say_what_the_questions_say() -> None:
    generator = np.random.default_rng(5)
    for p in (0.0, 0.2, 0.9, 1.0):
        counted, pictures = generator.random(31) < p, pictures_of(31, MIXED)

        share = Share.of(pictures * 10**9, counted)

        assert share.value == counted.mean()
        expected = share_interval(counted[:, None].astype(np.float64), pictures)[:, 0]
        assert share.interval == pytest.approx(expected)
