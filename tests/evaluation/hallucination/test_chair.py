from __future__ import annotations

import math
import random

import pytest
import torch

from lightning_mllm.evaluation.hallucination.chair import ChairMetrics, ChairResult, Mentions
from lightning_mllm.statistics.shares import wilson_share_interval

OBJECTS = "abcdefgh"


def draw(seed: int, count: int = 40) -> list[Mentions]:
    rng = random.Random(seed)
    return [
        Mentions(rng.choices(OBJECTS, k=rng.randint(0, 6)), rng.sample(OBJECTS, rng.randint(0, 4)))
        for _ in range(count)
    ]


def score(captions: list[Mentions], *, unique: bool = False) -> ChairResult:
    metric = ChairMetrics(unique=unique)
    metric.update(captions)
    result = metric.result()
    assert result is not None
    return result


@pytest.mark.parametrize("unique", [False, True])
def test_the_scores_are_those_of_the_definition(unique: bool) -> None:
    captions = draw(0)
    named = [list(dict.fromkeys(each.named)) if unique else list(each.named) for each in captions]
    wrong = [
        [name for name in own if name not in each.there]
        for own, each in zip(named, captions, strict=True)
    ]

    result = score(captions, unique=unique)

    assert result.chair_i == sum(map(len, wrong)) / sum(map(len, named))
    assert result.chair_s == sum(map(bool, wrong)) / len(captions)
    found = sum(len({*each.there} & {*own}) for own, each in zip(named, captions, strict=True))
    assert result.recall == found / sum(len(each.there) for each in captions)
    assert result.summary()["mentions_per_caption"] == sum(map(len, named)) / len(captions)


def test_what_is_named_twice_counts_twice_unless_it_is_to_be_unique() -> None:
    captions = [Mentions(["dog", "dog", "cat"], ["cat", "plate"])]

    assert captions[0].hallucinated == ("dog", "dog")
    assert captions[0].missed == ("plate",)
    assert score(captions).chair_i == 2 / 3
    assert score(captions, unique=True).chair_i == 1 / 2


def test_batches_and_processes_add_up() -> None:
    captions, parts = draw(1), [ChairMetrics(), ChairMetrics()]
    for start in range(0, 40, 7):
        parts[start % 2].update(captions[start : start + 7])

    total = [
        torch.stack(counts).sum(dim=0)
        for counts in zip(*(part.compute() for part in parts), strict=True)
    ]

    whole = ChairMetrics()
    whole.update(captions)
    # as dist_reduce_fx="sum" does
    for counts, expected in zip(total, whole.compute(), strict=True):
        assert torch.equal(counts, expected)


def test_with_a_mention_per_caption_the_interval_is_wilsons() -> None:
    captions = [Mentions(["a"], [] if k < 7 else ["a"]) for k in range(30)]

    assert score(captions).wrong.interval == pytest.approx(wilson_share_interval(7 / 30, 30))


def test_mentions_that_say_the_same_count_once_for_the_interval() -> None:
    captions = [Mentions(["a"] * 5, [] if k < 7 else ["a"]) for k in range(30)]

    assert score(captions).chair_i == 7 / 30
    assert score(captions).wrong.interval == pytest.approx(wilson_share_interval(7 / 30, 30))


def test_mentions_that_are_wrong_in_equal_parts_of_all_captions_count_all() -> None:
    captions = [Mentions(["a", "b", "b"], ["b"]) for _ in range(30)]

    assert score(captions).wrong.interval == pytest.approx(wilson_share_interval(1 / 3, 90))


def test_captions_without_any_hallucination_bound_it_by_their_number() -> None:
    captions = [Mentions(["a", "a", "b"], ["a", "b"])] * 20

    assert score(captions).wrong.interval == pytest.approx(wilson_share_interval(0.0, 20))


def test_the_interval_is_about_as_wide_as_that_of_a_bootstrap_over_captions() -> None:
    captions = draw(2, 400)
    sums = torch.tensor(
        [[len(each.hallucinated), len(each.named)] for each in captions], dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    drawn = sums[torch.randint(400, (2000, 400), generator=generator)].sum(dim=1)
    low, high = torch.quantile(
        drawn[:, 0] / drawn[:, 1], torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()

    assert score(captions).wrong.interval == pytest.approx((low, high), abs=0.006)


def test_where_nothing_is_named_there_is_no_share_of_it() -> None:
    result = score([Mentions([], ["a"]), Mentions([], [])])

    assert math.isnan(result.chair_i)
    assert math.isnan(result.wrong.interval.low)
    assert (result.chair_s, result.recall) == (0.0, 0.0)


def test_no_captions_have_no_result() -> None:
    metric = ChairMetrics()
    metric.update(draw(3))
    metric.reset()
    metric.update([])

    assert metric.result() is None
