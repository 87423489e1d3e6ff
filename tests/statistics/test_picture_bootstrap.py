"""Every number against a loop by hand; intervals are paired, seeded, and know what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.statistics.picture_bootstrap import (
    Bootstrap,
    BootstrapDraws,
    bootstrap_difference,
    bootstrap_estimate,
    bootstrap_mean,
    bootstrap_median,
    bootstrap_ratio_of_means,
    bootstrap_share,
    bootstrap_share_difference,
    bootstrap_share_ratio,
)
from lightning_mllm.statistics.question_table import (
    ALL,
    KeptQuestions,
    common_questions,
    count_questions,
    group_table_by_kind,
    pivot_question_table,
)
from lightning_mllm.statistics.shares import wilson_share_interval

Floats = NDArray[np.float64]

QUESTIONS, NUMBERS = 7, 3
BOOTSTRAP = Bootstrap(resamples=50, seed=4)
ALONE = BOOTSTRAP.draw(np.arange(QUESTIONS))  # a picture per question
SHARED = BOOTSTRAP.draw(np.array(["b", "a", "b", "c", "a", "b", "d"]))


def numbers(seed: int = 0) -> Floats:
    values = np.random.default_rng(seed).normal(size=(QUESTIONS, NUMBERS))
    values[2, 1] = values[5, 1] = values[:-1, 2] = np.nan
    return values


def drawn(values: Floats, weights: Floats) -> Floats:
    """Return the values of a resample, each question as often as it is drawn."""
    repeated: Floats = np.repeat(values, weights.astype(int), axis=0)
    return repeated


def by_hand(of: Callable[[Floats], Any], values: Floats) -> list[float]:
    columns = [column[~np.isnan(column)] for column in values.T]
    return [float(of(column)) if len(column) else np.nan for column in columns]


@pytest.mark.parametrize("draws", [ALONE, SHARED], ids=["alone", "shared"])
@pytest.mark.parametrize(
    ("statistic", "of"), [(bootstrap_mean, np.mean), (bootstrap_median, np.median)]
)
def test_values_and_intervals_are_those_of_a_loop_over_resamples(
    statistic: Any, of: Any, draws: BootstrapDraws
) -> None:
    values = numbers()

    found = bootstrap_estimate(statistic(values), values, draws)

    resampled = np.array([by_hand(of, drawn(values, row)) for row in draws.weights])
    np.testing.assert_allclose(found[:, 0], by_hand(of, values), rtol=1e-12)
    for column in range(NUMBERS - 1):
        own = resampled[:, column][~np.isnan(resampled[:, column])]
        np.testing.assert_allclose(found[column, 1:3], np.quantile(own, (0.025, 0.975)), rtol=1e-12)
    assert found[:, 3].tolist() == [7, 5, 1]


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["d", "a", "c", "b"]])
def test_a_picture_per_question_is_the_bootstrap_over_questions_whatever_they_are_called(
    names: list[str],
) -> None:
    draws = BOOTSTRAP.draw(np.array(names), "kind")

    generator = np.random.default_rng([BOOTSTRAP.seed, crc32(b"kind")])
    np.testing.assert_array_equal(
        draws.weights, generator.multinomial(4, np.full(4, 0.25), size=50)
    )


def test_a_picture_brings_all_its_questions() -> None:
    first, second, third, fourth, fifth, sixth, seventh = SHARED.weights.T

    np.testing.assert_array_equal(first, third)
    np.testing.assert_array_equal(first, sixth)
    np.testing.assert_array_equal(second, fifth)
    np.testing.assert_array_equal(first + second + fourth + seventh, np.full(50, 4))
    assert (first != second).any()


@pytest.mark.parametrize("statistic", [bootstrap_mean, bootstrap_median])
def test_questions_that_say_nothing_new_make_an_interval_no_narrower(statistic: Any) -> None:
    values = np.random.default_rng(1).normal(size=(30, 2))
    pictures = np.arange(30)

    once = bootstrap_estimate(statistic(values), values, BOOTSTRAP.draw(pictures))
    thrice = np.repeat(values, 3, axis=0)
    repeated = bootstrap_estimate(statistic(thrice), thrice, BOOTSTRAP.draw(np.repeat(pictures, 3)))

    np.testing.assert_allclose(repeated[:, :3], once[:, :3], rtol=1e-12)
    assert (repeated[:, 3] == 90).all()


def test_of_one_picture_there_is_a_value_and_an_n_but_no_interval() -> None:
    values = np.array([[1.0, 1.0], [2.0, np.nan], [3.0, 3.0], [np.nan, 5.0]])
    draws = BOOTSTRAP.draw(np.array(["a", "a", "a", "b"]))

    found = bootstrap_estimate(bootstrap_mean(values), values, draws)

    np.testing.assert_array_equal(
        found[0], [2.0, np.nan, np.nan, 3]
    )  # all that have it are about picture a
    assert np.isfinite(found[1]).all()


def test_the_ratio_of_means_is_of_the_questions_that_have_both() -> None:
    above, below = numbers(), np.abs(numbers(1)) + 1
    found = bootstrap_ratio_of_means(above, below)(SHARED.weights)

    for row, expected in zip(SHARED.weights, found, strict=True):
        top, bottom = drawn(above, row), drawn(np.where(np.isnan(above), np.nan, below), row)
        for column in range(NUMBERS):
            there = ~np.isnan(top[:, column])
            value = (
                top[there, column].sum() / bottom[there, column].sum() if there.any() else np.nan
            )
            np.testing.assert_allclose(expected[column], value, rtol=1e-12)


def test_the_interval_of_a_difference_is_paired() -> None:
    shared = np.random.default_rng(3).normal(
        scale=100, size=(40, 1)
    )  # questions differ far more than blocks
    ours, theirs = shared + 1.0, shared
    draws = BOOTSTRAP.draw(np.arange(40))

    value, low, high, n = bootstrap_difference(
        bootstrap_mean(ours), bootstrap_mean(theirs), ours, draws
    )[0]
    alone = bootstrap_estimate(bootstrap_mean(ours), ours, draws)[0]

    assert (value, low, high, n) == pytest.approx((1.0, 1.0, 1.0, 40))
    assert alone[2] - alone[1] > 10


def test_a_number_that_no_question_has_is_nan_and_has_an_n_of_0() -> None:
    values = np.full((QUESTIONS, 1), np.nan)

    for statistic in (
        bootstrap_mean(values),
        bootstrap_median(values),
        bootstrap_ratio_of_means(values, values),
    ):
        found = bootstrap_estimate(statistic, values, SHARED)[0]
        assert np.isnan(found[:3]).all()
        assert found[3] == 0


def test_draws_depend_on_seed_kind_and_shared_pictures_only() -> None:
    pictures = np.array(["x", "y", "x", "z"])
    weights = BOOTSTRAP.draw(pictures, "a").weights

    np.testing.assert_array_equal(
        weights, Bootstrap(50, 4).draw(np.array([3, 1, 3, 2]), "a").weights
    )
    assert (weights != BOOTSTRAP.draw(pictures, "b").weights).any()
    assert (weights != Bootstrap(50, 5).draw(pictures, "a").weights).any()


def test_an_interval_covers_the_mean_in_about_95_of_100_studies() -> None:
    generator = np.random.default_rng(0)
    shared = np.repeat(
        generator.normal(size=(60, 2000)), 3, axis=0
    )  # three questions about each picture are alike
    studies = shared + 0.3 * generator.normal(size=shared.shape)

    _, low, high, _ = bootstrap_estimate(
        bootstrap_mean(studies), studies, Bootstrap().draw(np.arange(180) // 3)
    ).T

    assert 0.92 <= ((low <= 0) & (high >= 0)).mean() <= 0.97


def test_shares_have_score_intervals_over_pictures_and_none_of_one_picture() -> None:
    pictures = np.repeat(np.arange(11), 2)
    none, every = np.zeros((22, 1)), np.ones((22, 1))

    np.testing.assert_allclose(
        bootstrap_share(none, pictures, 100)[0],
        [0, *(100 * end for end in wilson_share_interval(0, 11)), 22],
    )
    value, low, high, n = bootstrap_share_difference(every, every, pictures)[0]
    assert (value, n) == (0, 22)
    assert low < -0.1 and high == pytest.approx(-low)
    half = (pictures % 2)[:, None].astype(np.float64)
    value, low, high, n = bootstrap_share_ratio(half, half, pictures, 100)[0]
    assert (value, n) == (100, 22)
    assert low < 80 and high > 120
    missing = np.where(
        np.arange(22)[:, None] < 2, every, np.nan
    )  # both that have it are about picture 0
    for found in (
        bootstrap_share(missing, pictures),
        bootstrap_share_difference(missing, none, pictures),
    ):
        np.testing.assert_array_equal(found, [[1, np.nan, np.nan, 2]])


def test_a_bootstrap_without_resamples_is_refused() -> None:
    with pytest.raises(ConfigError, match="one resample or more, not 0"):
        Bootstrap(resamples=0)


def test_kinds_are_told_apart_as_deep_as_is_asked() -> None:
    kinds = np.array(["seen/a/0", "held/a/0", "seen/a/1", "seen/b/0"])

    found = {kind: rows.tolist() for kind, rows in group_table_by_kind(kinds, 2).items()}

    assert found == {ALL: [0, 1, 2, 3], "held/a": [1], "seen/a": [0, 2], "seen/b": [3]}
    assert set(group_table_by_kind(kinds[:1])) == {
        "seen/a/0"
    }  # of one kind, all would be the same again


def test_a_kind_that_is_called_all_is_not_taken_for_all_kinds() -> None:
    table = {
        "sample_id": np.array(["a", "b", "c"]),
        "kind": np.array(["all/0", "some", "all/1"]),
        "measured": np.array([True, True, False]),
    }

    assert {
        kind: rows.tolist() for kind, rows in group_table_by_kind(table["kind"], 1).items()
    } == {
        ALL: [0, 1, 2],
        "'all'": [0, 2],
        "some": [1],
    }
    assert count_questions(table, 1) == {
        "'all'": {"asked": 2, "kept": 1},
        "some": {"asked": 1, "kept": 1},
    }


def test_what_is_kept_is_told_per_kind_with_its_pictures() -> None:
    table = {
        "sample_id": np.array(["d", "d", "a", "a", "c", "b", "b"]),
        "kind": np.array(["x", "x", "y", "y", "x", "x", "x"]),
        "picture": np.array(["p", "p", "p", "p", "q", "p", "p"]),
        "measured": np.array([True, True, True, True, False, True, True]),
    }

    kept = KeptQuestions.of(table)

    assert (kept.ids.tolist(), kept.pictures.tolist()) == (["a", "b", "d"], ["p", "p", "p"])
    assert {kind: rows.tolist() for kind, rows in kept.groups.items()} == {
        ALL: [0, 1, 2],
        "x": [1, 2],
        "y": [0],
    }
    assert kept.count_pictures() == {ALL: 1, "x": 1, "y": 1}


def test_a_pivot_puts_each_number_in_its_place_whatever_the_order() -> None:
    table = {
        "sample_id": np.array(["b", "a", "b", "a"]),
        "block": np.array(["y", "x", "x", "y"]),
        "layer": np.array([5, 2, 2, 5]),
        "value": np.array([1.0, 2.0, 3.0, 4.0]),
    }
    where = np.array([True, True, True, False])

    found = pivot_question_table(
        table, "value", {"block": ("y", "x"), "layer": (2, 5)}, np.array(["a", "b"]), where
    )

    np.testing.assert_array_equal(
        found, [[[np.nan, np.nan], [2, np.nan]], [[np.nan, 1], [3, np.nan]]]
    )


def run(*measured: str) -> dict[str, NDArray[Any]]:
    names = ("a", "b", "c")
    return {
        "sample_id": np.array(names),
        "measured": np.array([name in measured for name in names]),
    }


def test_a_common_subset_has_the_questions_that_every_run_looked_into() -> None:
    found = common_questions({"small": run("a", "b"), "large": run("b", "c")})

    assert {name: table["sample_id"].tolist() for name, table in found.items()} == {
        "small": ["b"],
        "large": ["b"],
    }


def test_runs_without_a_common_question_are_refused() -> None:
    with pytest.raises(DataError, match=r"no question in common.*small 1, large 1"):
        common_questions({"small": run("a"), "large": run("c")})
