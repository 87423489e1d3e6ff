from __future__ import annotations

import numpy as np
import pytest

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.classification.metrics import ClassificationResult
from lightning_mllm.statistics.answer_arrays import ABSENT, INVALID, make_answer_arrays
from lightning_mllm.statistics.missing import Integers
from lightning_mllm.statistics.seeds_and_samples import (
    SeedResampler,
    difference_over_seeds,
    estimate_over_seeds,
    relative_change_over_seeds,
)


def answers(
    rng: np.random.Generator, targets: Integers, skills: list[float], classes: int = 4
) -> Integers:
    """Return (seeds, 1, samples) answers that are right with the skill of their seed."""
    guesses = rng.integers(0, classes, size=(len(skills), 1, len(targets)))
    return np.where(rng.random(guesses.shape) < np.array(skills)[:, None, None], targets, guesses)


def test_scores_are_those_of_the_evaluation() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, size=50)
    predicted = rng.integers(INVALID, 5, size=(2, 1, 50))  # 4 is a class without samples
    counts = np.zeros((2, 5, 6), dtype=np.int64)
    for seed in range(2):
        np.add.at(counts[seed], (targets, predicted[seed, 0]), 1)  # -1 is the last column

    scores = SeedResampler(targets, 2).score(predicted)

    expected = [ClassificationResult.from_confusion(tuple("abcde"), table) for table in counts]
    assert scores["accuracy"].observed == pytest.approx([each.accuracy for each in expected])
    assert scores["macro_f1"].observed == pytest.approx([each.macro_f1 for each in expected])


def test_repetitions_are_averaged() -> None:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 3, size=30)
    one, other = answers(rng, targets, [0.5]), answers(rng, targets, [0.9])
    resampler = SeedResampler(targets, 1)

    both = resampler.score(np.concatenate([one, other], axis=1))["macro_f1"]

    mean = (
        resampler.score(one)["macro_f1"].resampled + resampler.score(other)["macro_f1"].resampled
    ) / 2
    np.testing.assert_allclose(both.resampled, mean)


def test_a_resample_takes_the_half_it_has_drawn_and_scores_stay_those_of_all_samples() -> None:
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 3, size=30)
    full, of_halves = (
        answers(rng, targets, [0.9, 0.8], classes=3),
        answers(rng, targets, [0.5, 0.5], classes=3),
    )
    of_halves = np.concatenate([of_halves, answers(rng, targets, [0.6, 0.1], classes=3)], axis=1)
    resampler = SeedResampler(targets, 2, halves=2)

    found = resampler.score(full, of_halves)["macro_f1"]

    np.testing.assert_array_equal(found.observed, resampler.score(full)["macro_f1"].observed)
    for half in (0, 1):
        alone = resampler.score(of_halves[:, half : half + 1])["macro_f1"].resampled
        drawn = resampler.halves == half
        assert 900 < drawn.sum() < 1100
        np.testing.assert_allclose(found.resampled[drawn], alone[drawn])


def test_the_chance_in_the_training_samples_of_a_probe_widens_the_interval() -> None:
    rng = np.random.default_rng(3)
    targets = np.arange(60) % 3
    full = answers(rng, targets, [0.7] * 5, classes=3)
    resampler = SeedResampler(targets, 5, halves=10)
    alike = np.repeat(full, 10, axis=1)
    unlike = np.concatenate(
        [answers(rng, targets, [skill] * 5, classes=3) for skill in np.linspace(0, 1, 10)], axis=1
    )

    narrow, wide = (
        np.ptp(resampler.score(full, each)["accuracy"].interval) for each in (alike, unlike)
    )

    assert narrow == pytest.approx(np.ptp(resampler.score(full)["accuracy"].interval))
    assert wide > 1.5 * narrow


def test_a_sample_that_a_seed_does_not_have_does_not_count() -> None:
    targets = np.array([0, 0, 1, 1, 1])
    predicted = np.array([[[0, ABSENT, 1, 0, ABSENT]], [[ABSENT, 1, ABSENT, 1, 1]]])

    accuracy = SeedResampler(targets, 2).score(predicted)["accuracy"]

    assert accuracy.observed == pytest.approx([2 / 3, 2 / 3])


def test_resamples_keep_class_sizes_and_are_the_same_each_time() -> None:
    targets = np.array([0] * 7 + [1] * 3)
    one, other = SeedResampler(targets, 3), SeedResampler(targets, 3)

    assert (one.weights[:, :7].sum(axis=1) == 7).all()
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.draws.shape == (2000, 2)


def test_the_interval_covers_the_truth_when_seeds_and_samples_are_few() -> None:
    """Seeds differ in skill with deviation 0.05; the nominal coverage is 95 %."""
    rng = np.random.default_rng(0)
    trials, covered = 150, 0
    for _ in range(trials):
        targets = np.arange(80) % 4
        lower = answers(rng, targets, list(0.4 + 0.05 * rng.standard_normal(4)))
        higher = answers(rng, targets, list(0.6 + 0.05 * rng.standard_normal(4)))
        resampler = SeedResampler(targets, 4, resamples=400, seed=int(rng.integers(1 << 30)))
        low, high = difference_over_seeds(
            resampler.score(higher)["accuracy"], resampler.score(lower)["accuracy"]
        ).interval
        covered += low <= 0.2 * 0.75 <= high
    assert 0.9 <= covered / trials <= 1


def test_an_estimate_has_the_freedom_of_the_seeds_where_they_are_all_that_varies() -> None:
    by_seed = np.array([0.1, 0.2, 0.6])
    draws = np.random.default_rng(0).integers(0, 3, size=(20_000, 2))

    found = estimate_over_seeds(by_seed, by_seed[draws].mean(axis=1))

    assert found.value == pytest.approx(0.3)
    assert found.variance == pytest.approx(by_seed.var(ddof=1) / 3, rel=0.05)
    assert found.freedom == pytest.approx(2, rel=0.1)
    assert found.interval[1] - found.value == pytest.approx(4.30 * found.variance**0.5, rel=0.1)


def test_an_estimate_is_normal_where_seeds_agree_and_exact_where_nothing_varies() -> None:
    resampled = 0.3 + 0.01 * np.random.default_rng(0).standard_normal(20_000)

    alike = estimate_over_seeds(np.full(3, 0.3), resampled)
    exact = estimate_over_seeds(np.full(3, 0.3), np.full(2000, 0.1 + 0.2))

    assert alike.interval == pytest.approx((0.3 - 0.0196, 0.3 + 0.0196), abs=1e-3)
    assert exact.interval == pytest.approx((0.3, 0.3))
    assert exact.variance == 0


def test_intervals_of_scores_stay_within_their_range() -> None:
    targets = np.arange(12) % 4
    resampler = SeedResampler(targets, 3)
    some = np.zeros((3, 1, 12), dtype=bool)
    some[0, 0, :3] = True  # a quarter of the samples, in one seed of three

    high = resampler.score(np.where(some, INVALID, targets))["accuracy"].interval
    low = resampler.score(np.where(some, targets, INVALID))["accuracy"].interval

    assert 0 < high[0] < high[1] == 1
    assert 0 == low[0] < low[1] < 1


def test_the_relative_change_is_that_of_the_means() -> None:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 4, size=100)
    resampler = SeedResampler(targets, 3)
    old, new = (resampler.score(answers(rng, targets, [s] * 3))["macro_f1"] for s in (0.8, 0.4))

    change = relative_change_over_seeds(new, old)

    assert change is not None
    assert change[0] == pytest.approx(100 * (new.observed.mean() / old.observed.mean() - 1))
    assert change[1] < change[0] < change[2] < 0
    assert (
        relative_change_over_seeds(old, resampler.score(np.full((3, 1, 100), INVALID))["macro_f1"])
        is None
    )


def test_a_relative_change_of_what_could_be_0_has_no_interval() -> None:
    targets = np.arange(40) % 4
    resampler = SeedResampler(targets, 3)
    rare = np.where(
        np.arange(40) == np.array([[[0]], [[1]], [[5]]]), targets, INVALID
    )  # one right answer per seed
    rare[2] = INVALID

    new, original = (
        resampler.score(each)["accuracy"] for each in (np.tile(targets, (3, 1, 1)), rare)
    )
    change = relative_change_over_seeds(new, original)

    assert change is not None
    assert change[0] == pytest.approx(100 * (1 / (2 / 120) - 1))
    assert np.isnan(change[1:]).all()


def test_answers_by_sample_become_arrays_over_the_samples_of_all_seeds() -> None:
    truth = [{"a": "x", "b": "y"}, {"b": "y", "c": "x"}]
    said = [({"a": "x", "b": ""},), ({"b": "x", "c": "z"},)]

    targets, predicted = make_answer_arrays({"model": list(zip(truth, said, strict=True))})

    assert targets.tolist() == [0, 1, 0]
    assert predicted["model"].tolist() == [[[0, INVALID, ABSENT]], [[ABSENT, 0, 2]]]


def test_models_that_were_tested_on_other_samples_are_not_compared() -> None:
    with pytest.raises(DataError, match="ft_proj was tested on other samples"):
        make_answer_arrays(
            {"zero_shot": [({"a": "x"}, ({"a": "x"},))], "ft_proj": [({"b": "x"}, ({"b": "x"},))]}
        )
