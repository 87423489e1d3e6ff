from __future__ import annotations

import math

import pytest
import torch

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation import AnswerMetrics, AnswerResult, AnswerScore, OpenAnswer
from lightning_mllm.statistics.shares import wilson_share_interval


def answers(kind: str, correct: int, n: int, per_picture: int = 1) -> list[OpenAnswer]:
    said = ["yes" if k < correct else "no" for k in range(n)]
    return [
        OpenAnswer(f"{kind}-{k}", kind, "yes", each, each == "yes", 0, f"{kind}-{k // per_picture}")
        for k, each in enumerate(said)
    ]


@pytest.mark.parametrize(
    ("correct", "n", "interval"),
    [
        (8, 10, (0.4901625, 0.9433178)),
        (0, 10, (0.0, 0.2775328)),
        (10, 10, (0.7224672, 1.0)),
        (1, 1, (0.2065493, 1.0)),
        # Newcombe, 1998, Statistics in Medicine 17, Table I: 0.2553 to 0.3662
        (81, 263, (0.2552888, 0.3661902)),
        (15, 148, (0.0623866, 0.1604917)),  # likewise: 0.0624 to 0.1605
    ],
)
def test_intervals_are_wilsons(correct: int, n: int, interval: tuple[float, float]) -> None:
    assert AnswerScore(n, correct).interval == pytest.approx(interval, abs=2e-5)


def test_the_bounds_are_those_whose_test_just_accepts_the_accuracy() -> None:
    score = AnswerScore(40, 13)

    for p in score.interval:
        assert abs(score.accuracy - p) == pytest.approx(
            1.959964 * math.sqrt(p * (1 - p) / 40), abs=1e-6
        )


@pytest.mark.parametrize("correct", range(0, 31))
def test_an_interval_holds_its_accuracy_and_stays_between_0_and_1(correct: int) -> None:
    score = AnswerScore(30, correct)

    assert 0 <= score.interval.low <= score.accuracy <= score.interval.high <= 1


def test_a_split_has_scores_per_kind_over_all_and_on_average() -> None:
    metrics = AnswerMetrics(("a", "b", "unasked"))
    metrics.update(answers("a", 1, 2))
    metrics.update([])
    metrics.update(answers("b", 6, 6) + answers("a", 0, 2))

    result = metrics.result()

    assert result is not None
    assert result.per_kind == {"a": AnswerScore(4, 1), "b": AnswerScore(6, 6)}
    assert result.overall == AnswerScore(10, 7)
    assert result.mean_over_kinds == pytest.approx((0.25 + 1) / 2)
    summary = result.summary()
    assert (summary["n"], summary["accuracy"], summary["mean_over_kinds"]) == (10, 0.7, 0.625)
    low = pytest.approx(0.6096657)
    assert summary["kinds"]["b"] == {"n": 6, "accuracy": 1.0, "accuracy_interval_95": [low, 1.0]}


def test_two_processes_add_up() -> None:
    parts = [AnswerMetrics(("a", "b")) for _ in range(2)]
    parts[0].update(answers("a", 1, 2))
    parts[1].update(answers("b", 2, 3) + answers("a", 1, 1))

    total = torch.cat([part.compute() for part in parts])  # as dist_reduce_fx="cat" does

    expected = AnswerResult({"a": AnswerScore(3, 2), "b": AnswerScore(3, 2)})
    assert AnswerResult.from_answers(("a", "b"), total) == expected


def test_answers_about_one_picture_are_not_independent() -> None:
    metrics = AnswerMetrics(("a", "b"))
    metrics.update(answers("a", 10, 20, per_picture=2) + answers("b", 20, 20, per_picture=2))

    result = metrics.result()

    assert result is not None
    # both answers about a picture are alike
    assert result.per_kind["a"].interval == wilson_share_interval(0.5, 10)
    assert result.per_kind["b"].interval == wilson_share_interval(1.0, 10)
    low, high = AnswerScore(40, 30).interval
    assert result.overall.interval.low < low < high < result.overall.interval.high


def test_no_answers_have_no_result() -> None:
    metrics = AnswerMetrics(("a",))
    metrics.update(answers("a", 1, 1))
    metrics.reset()
    metrics.update([])

    assert metrics.result() is None


def test_a_kind_may_not_take_the_name_of_the_whole() -> None:
    with pytest.raises(DataError, match=r"kind of question is named 'accuracy'.* Rename it"):
        AnswerMetrics(("accuracy", "colour"))
