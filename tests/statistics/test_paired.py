from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom  # type: ignore[import-untyped]

from lightning_mllm.statistics.paired import PairedShares


def _draw(n: int, seed: int) -> tuple[list[bool], list[bool], list[str]]:
    generator = np.random.default_rng(seed)
    ours, theirs = generator.random((2, n)) < [[0.7], [0.6]]
    return ours.tolist(), theirs.tolist(), [str(k) for k in range(n)]


@pytest.mark.parametrize("seed", range(4))
def test_p_is_the_chance_of_a_split_of_the_discordant_samples_at_least_as_uneven(seed: int) -> None:
    ours, theirs, pictures = _draw(60, seed)

    found = PairedShares.of(ours, theirs, pictures)

    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    assert (found.won, found.lost) == (won, lost)
    assert found.p == pytest.approx(min(1, 2 * binom.cdf(min(won, lost), won + lost, 0.5)))
    assert found.ours - found.theirs == pytest.approx((won - lost) / 60)


def test_the_other_way_round_everything_has_the_other_sign() -> None:
    ours, theirs, pictures = _draw(60, 0)

    one, other = (PairedShares.of(*pair, pictures) for pair in ((ours, theirs), (theirs, ours)))

    assert (one.won, one.lost, one.p) == (other.lost, other.won, other.p)
    assert one.interval == pytest.approx((-other.interval.high, -other.interval.low))


def test_equal_answers_differ_by_nothing_and_their_interval_has_a_width() -> None:
    ours, _, pictures = _draw(40, 1)

    found = PairedShares.of(ours, ours, pictures)

    assert (found.won, found.lost, found.p) == (0, 0, 1.0)
    assert found.interval.low < 0 < found.interval.high


def test_samples_of_one_picture_make_the_interval_wider_but_not_the_test() -> None:
    ours, theirs, pictures = _draw(60, 2)

    alone = PairedShares.of(ours, theirs, pictures)
    repeated = PairedShares.of(ours * 3, theirs * 3, pictures * 3)

    assert (repeated.n, repeated.pictures) == (180, 60)
    assert repeated.interval == pytest.approx(alone.interval, abs=0.02)
    assert repeated.p < alone.p


def test_one_picture_has_no_interval() -> None:
    found = PairedShares.of([True, False], [False, False], ["a", "a"])

    assert found.pictures == 1 and all(map(math.isnan, found.interval))
