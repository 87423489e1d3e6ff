from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import (  # type: ignore[import-untyped]
    accuracy_score,
    f1_score,
    precision_score,
    recall_score,
)

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.evaluation.hallucination.pope import (
    SAMPLINGS,
    PopeMetrics,
    PopeResult,
    PopeScore,
    Reading,
    pope_sampling,
)
from lightning_mllm.evaluation.open_answers.exact_match import OpenAnswer
from lightning_mllm.statistics.shares import wilson_share_interval

YES_NO = ("no", "yes")


def answer(
    said: str, truth: str = "yes", kind: str = "presence/random", picture: str = "p"
) -> OpenAnswer:
    return OpenAnswer("s", kind, truth, said, said == truth, first_token=0, picture=picture)


def draw(seed: int, count: int = 60, kind: str = "popular") -> list[OpenAnswer]:
    rng = random.Random(seed)
    return [answer(rng.choice(YES_NO), rng.choice(YES_NO), kind) for _ in range(count)]


def score(answers: list[OpenAnswer], reading: Reading = "named") -> PopeResult:
    metric = PopeMetrics(reading=reading)
    metric.update(answers)
    result = metric.result()
    assert result is not None
    return result


def test_scores_are_scikit_learns() -> None:
    answers = draw(0)
    truth, said = (
        [each.reference == "yes" for each in answers],
        [each.answer == "yes" for each in answers],
    )

    found = score(answers).per_sampling["popular"]

    assert found.n == 60
    assert found.value("accuracy") == pytest.approx(accuracy_score(truth, said))
    assert found.value("precision") == pytest.approx(precision_score(truth, said))
    assert found.value("recall") == pytest.approx(recall_score(truth, said))
    assert found.value("f1") == pytest.approx(f1_score(truth, said))
    assert found.value("yes_rate") == sum(said) / 60


def test_each_way_of_drawing_has_its_scores_and_other_kinds_none() -> None:
    answers = [
        each
        for k, sampling in enumerate(SAMPLINGS)
        for each in draw(k, 10 + k, f"presence/{sampling}")
    ]

    result = score(
        [*answers, answer("yes", kind="seen/LogicalObj/0"), answer("red", "red", "randomly")]
    )

    counts = {name: each.n for name, each in result.per_sampling.items()}
    assert counts == {"random": 10, "popular": 11, "adversarial": 12}
    assert result.overall.n == 33
    right = sum(each.correct for each in answers)
    assert result.overall.value("accuracy") == right / 33
    summary = result.summary()
    assert summary["mean_f1"] == pytest.approx(
        sum(summary["samplings"][name]["f1"] for name in SAMPLINGS) / 3
    )


def test_a_model_that_always_says_yes_is_found_out() -> None:
    found = score([answer("Yes", truth) for truth in YES_NO * 10]).overall

    values = [found.value(name) for name in ("accuracy", "precision", "recall", "f1", "yes_rate")]
    assert values == [0.5, 0.5, 1.0, pytest.approx(2 / 3), 1.0]


def test_one_that_never_does_has_no_precision_and_an_f1_of_0() -> None:
    found = score([answer("no", truth) for truth in YES_NO]).overall

    assert math.isnan(found.value("precision"))
    assert math.isnan(found.interval("precision").low)
    assert found.value("f1") == 0.0


@pytest.mark.parametrize(
    ("said", "named", "released"),
    [
        ("Yes, there is a dog in the picture.", "yes", "yes"),
        ("No.", "no", "no"),
        ("There is no dog", "no", "no"),
        ("There is not.", "", "no"),
        ("No, there is not a dog.", "no", "no"),
        ("No there isn't", "no", "no"),
        ("There is not a dog, no", "no", "no"),
        ("I would not say yes", "", "no"),
        ("not yes but no", "no", "no"),
        ("Yes, it is not far away.", "yes", "no"),
        ("Yes it is not", "", "no"),
        ("It is a dog.", "", "yes"),
        ("", "", "yes"),
        ("Yes. No other.", "", "yes"),
        ("Not a dog", "", "yes"),  # the released code knows "not" in lower case only
        ("nobody knows", "", "yes"),
    ],
)
def test_an_answer_is_read_as_it_is_to_be_read(said: str, named: str, released: str) -> None:
    rates = {"yes": (1.0, 0.0), "no": (0.0, 0.0), "": (0.0, 1.0)}
    expected: dict[Reading, str] = {"named": named, "released": released}
    for reading, meaning in expected.items():
        summary = score([answer(said)], reading).summary()
        assert (summary["yes_rate"], summary["neither_rate"]) == rates[meaning], reading


def test_what_is_neither_yes_nor_no_is_wrong() -> None:
    found = score([answer("red", "yes"), answer("red", "no"), answer("yes", "yes")]).overall

    assert (found.value("accuracy"), found.value("recall"), found.value("precision")) == (
        1 / 3,
        0.5,
        1.0,
    )
    assert found.value("f1") == pytest.approx(2 / 3)


def test_intervals_are_wilsons_and_that_of_f1_follows_its_jaccard_index() -> None:
    found = PopeScore(absent=(30, 10, 2), present=(5, 33, 1))

    assert found.interval("accuracy") == wilson_share_interval(63 / 81, 81)
    assert found.interval("yes_rate") == wilson_share_interval(43 / 81, 81)
    low, high = wilson_share_interval(
        33 / 49, 49
    )  # of the questions to which yes was said or right
    assert found.interval("f1") == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))
    assert found.interval("f1").low < found.value("f1") < found.interval("f1").high


def test_batches_and_processes_add_up() -> None:
    answers, parts = draw(1), [PopeMetrics(), PopeMetrics()]
    for start in range(0, 60, 7):
        parts[start % 2].update(answers[start : start + 7])

    total = torch.cat([part.compute() for part in parts])  # as dist_reduce_fx="cat" does

    assert PopeResult.from_answers(total) == score(answers)


def test_no_questions_have_no_result() -> None:
    metric = PopeMetrics()
    metric.update(draw(0))
    metric.reset()
    metric.update([answer("red", "red", "seen")])

    assert metric.result() is None


def test_kinds_say_how_what_is_absent_was_drawn() -> None:
    kinds = ("random", "coco/popular", "a/b/adversarial", "randomly", "random/a", "")

    assert [pope_sampling(kind) for kind in kinds] == [*SAMPLINGS, None, None, None]


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no reading 'loose', only 'named' and 'released'"):
        PopeMetrics(reading="loose")  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"Sample 's' of kind 'presence/random' has the answer 'red'"
    ):
        PopeMetrics().update([answer("yes", "red")])


def test_questions_about_one_picture_are_not_independent() -> None:
    alone = [answer(said, "yes", picture=str(k)) for k, said in enumerate(["yes", "no"] * 20)]
    # two that say the same
    shared = [replace(each, picture=str(k // 4 * 2 + k % 2)) for k, each in enumerate(alone)]

    apart, together = (score(each).overall for each in (alone, shared))

    for name in ("accuracy", "recall", "yes_rate"):
        assert apart.interval(name) == wilson_share_interval(0.5, 40)
        assert together.interval(name) == wilson_share_interval(0.5, 20)
    # of the 20 pictures to which yes was said
    assert together.interval("precision") == wilson_share_interval(1.0, 10)
    low, high = together.interval("f1")
    assert low < apart.interval("f1").low < apart.interval("f1").high < high
