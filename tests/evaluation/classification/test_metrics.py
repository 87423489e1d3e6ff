from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import (  # type: ignore[import-untyped]
    accuracy_score,
    confusion_matrix,
    f1_score,
)
from torch import Tensor

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation import ClassificationMetrics, ClassificationResult
from lightning_mllm.statistics.shares import wilson_share_interval

NAMES = tuple("abcdefg")
CLASSES = len(NAMES)


def draw(seed: int, n: int = 300, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Random predictions, invalid ones among them, and targets."""
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(-1, classes, (n,), generator=generator)
    targets = torch.randint(0, classes, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < 0.5, targets, predicted), targets


def score(predicted: Tensor, targets: Tensor, seed: int = 0) -> ClassificationResult:
    metrics = ClassificationMetrics(NAMES, seed=seed)
    metrics.update(predicted, targets)
    return metrics.result()


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learn(seed: int) -> None:
    predicted, targets = draw(seed)
    options = {"labels": range(CLASSES), "zero_division": np.nan}

    result = score(predicted, targets)

    assert result.n == 300
    assert result.accuracy == pytest.approx(accuracy_score(targets, predicted), abs=1e-12)
    assert result.macro_f1 == pytest.approx(
        f1_score(targets, predicted, average="macro", **options), abs=1e-12
    )
    assert result.per_class_f1 == pytest.approx(
        f1_score(targets, predicted, average=None, **options), abs=1e-12
    )
    assert result.invalid_rate == pytest.approx(float((predicted == -1).double().mean()))
    expected = confusion_matrix(targets, predicted, labels=[*range(CLASSES), -1])[:-1]
    np.testing.assert_array_equal(result.confusion, expected)


@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_is_over_the_classes_of_the_split_whatever_is_predicted(seed: int) -> None:
    predicted, targets = draw(seed, classes=4)  # of seven
    strays = predicted.where(torch.arange(len(predicted)) % 10 > 0, 5)

    result, strayed = score(predicted, targets), score(strays, targets)

    for scores, answers in ((result, predicted), (strayed, strays)):
        expected = f1_score(targets, answers, labels=range(4), average="macro")
        assert scores.macro_f1 == pytest.approx(expected, abs=1e-12)
        assert scores.classes_scored == 4
    assert np.isnan(result.per_class_f1[4:]).all()


def test_two_halves_make_the_whole() -> None:
    predicted, targets = draw(0)
    metrics = ClassificationMetrics(NAMES)
    metrics.update(predicted[:113], targets[:113])
    metrics.update(predicted[113:], targets[113:])

    assert metrics.result().summary() == score(predicted, targets).summary()


def test_reset_forgets() -> None:
    metrics = ClassificationMetrics(NAMES)
    metrics.update(*draw(0))
    metrics.reset()
    metrics.update(*draw(1))

    assert metrics.result().summary() == score(*draw(1)).summary()


def test_the_bootstrap_is_seeded() -> None:
    first, again, other = (score(*draw(0), seed=seed) for seed in (0, 0, 1))

    assert first.accuracy_interval == again.accuracy_interval
    assert first.macro_f1_interval == again.macro_f1_interval
    assert first.macro_f1_interval != other.macro_f1_interval


def test_the_interval_is_that_of_resampling_samples_within_their_classes() -> None:
    predicted, targets = draw(3)
    generator = np.random.default_rng(5)
    members = [np.flatnonzero(targets == label) for label in range(CLASSES)]
    accuracies, scores = [], []
    for _ in range(400):
        picked = np.concatenate([generator.choice(group, len(group)) for group in members])
        accuracies.append(accuracy_score(targets[picked], predicted[picked]))
        scores.append(
            f1_score(targets[picked], predicted[picked], labels=range(CLASSES), average="macro")
        )

    result = score(predicted, targets)

    assert result.accuracy_interval == wilson_share_interval(result.accuracy, 300)
    assert result.accuracy_interval == pytest.approx(
        np.quantile(accuracies, [0.025, 0.975]), abs=0.015
    )
    assert result.macro_f1_interval == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.015)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth, covered, repetitions = 0.7, 0, 100
    generator = np.random.default_rng(0)
    for _ in range(repetitions):
        hits = int(generator.binomial(150, truth))
        interval = ClassificationResult.from_confusion(
            ("a", "b"), np.array([[hits, 150 - hits, 0], [0, 0, 0]])
        ).accuracy_interval
        covered += interval.low <= truth <= interval.high

    assert 0.88 <= covered / repetitions <= 1.0


def test_a_perfect_scorer_and_one_that_is_always_wrong_have_intervals_with_a_width() -> None:
    _, targets = draw(0)

    perfect, wrong = score(targets, targets), score(torch.full_like(targets, -1), targets)

    assert (perfect.accuracy, perfect.macro_f1, perfect.invalid_rate) == (1.0, 1.0, 0.0)
    assert perfect.accuracy_interval == perfect.macro_f1_interval == wilson_share_interval(1.0, 300)
    assert perfect.invalid_interval == wrong.macro_f1_interval == wilson_share_interval(0.0, 300)
    assert wrong.invalid_interval == wilson_share_interval(1.0, 300)


def test_one_answer_to_everything_has_no_interval_of_macro_f1() -> None:
    result = score(torch.zeros(8, dtype=torch.int64), torch.arange(8) % CLASSES)

    assert 0 < result.macro_f1 < 1
    assert np.isnan(result.macro_f1_interval).all()
    assert result.accuracy_interval == wilson_share_interval(result.accuracy, 8)


@pytest.mark.parametrize("target", [-1, CLASSES])
def test_a_sample_without_a_known_label_is_refused(target: int) -> None:
    with pytest.raises(
        DataError, match=f"1 of 2 samples have no label among the 7 classes .*target {target}"
    ):
        ClassificationMetrics(NAMES).update(torch.tensor([0, 0]), torch.tensor([0, target]))


def test_nothing_evaluated_is_refused() -> None:
    with pytest.raises(DataError, match="no sample was evaluated"):
        ClassificationResult.from_confusion(("a",), np.zeros((1, 2), dtype=np.int64))
