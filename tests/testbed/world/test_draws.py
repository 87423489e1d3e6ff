from collections import Counter

import numpy as np

from lightning_mllm.testbed import Draw


def test_the_stream_is_the_same_on_every_machine() -> None:
    draw = Draw("pinned", 0)

    assert [draw.below(1000) for _ in range(8)] == [597, 932, 609, 715, 212, 76, 252, 813]
    assert draw.shuffled("abcdefgh") == [*"ecghafbd"]
    assert draw.noise(1, 2, 12).tolist() == [[[7, 0, 7], [0, 12, 0]]]


def test_a_key_is_its_words_and_numbers() -> None:
    def stream(*key: str | int) -> list[int]:
        draw = Draw(*key)
        return [draw.below(10**9) for _ in range(3)]

    assert stream("scene", 1) == stream("scene", "1")
    assert len({tuple(stream("scene", number)) for number in range(100)}) == 100


def test_all_integers_of_a_range_come_equally_often() -> None:
    draw = Draw("between")
    counts = Counter(draw.between(-2, 3) for _ in range(6000))

    assert sorted(counts) == [-2, -1, 0, 1, 2, 3]
    assert all(880 < count < 1120 for count in counts.values())


def test_a_chance_is_kept() -> None:
    draw = Draw("happens")

    assert 1370 < sum(draw.happens(0.3) for _ in range(5000)) < 1630
    assert not any(draw.happens(0.0) for _ in range(100))
    assert all(draw.happens(1.0) for _ in range(100))


def test_one_is_any_of_the_options() -> None:
    draw = Draw("one")

    assert {draw.one("abc") for _ in range(100)} == {*"abc"}


def test_all_orders_come_equally_often() -> None:
    draw = Draw("shuffled")
    counts = Counter(tuple(draw.shuffled("abc")) for _ in range(6000))

    assert len(counts) == 6
    assert all(880 < count < 1120 for count in counts.values())


def test_shuffling_leaves_the_options_as_they_are() -> None:
    options = [3, 1, 2]

    assert sorted(Draw("leaves").shuffled(options)) == [1, 2, 3]
    assert options == [3, 1, 2]


def test_noise_fills_its_range_evenly() -> None:
    noise = Draw("noise").noise(64, 48, 3)

    assert noise.shape == (64, 48, 3)
    values, counts = np.unique(noise, return_counts=True)
    assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert (abs(counts / noise.size - 1 / 7) < 0.02).all()
