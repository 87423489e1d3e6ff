"""Streams of random numbers that no other choice, process, platform or version may shift."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_mllm.store.seeds import (
    draw_by_seed,
    numpy_generator,
    python_random,
    seed_number_of,
    seed_of,
    seed_rank_of,
    torch_generator,
)


def test_seeds_and_purposes_give_different_numbers_and_the_same_ones_again() -> None:
    names = [(seed, purpose) for seed in (0, 1) for purpose in ("a", "b")]
    draws = {name: torch.rand(3, generator=torch_generator(*name)) for name in names}

    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 4
    assert torch.equal(torch.rand(3, generator=torch_generator(1, "b")), draws[1, "b"])


def test_the_numbers_of_a_name_never_change() -> None:
    """Splits, checkpoints, caches and tables of earlier versions hold what was drawn."""
    assert seed_of(0, "slice") == 167062135004650646
    assert python_random("scene", 0, "train", 3).random() == 0.822250626072353
    drawn = torch.randint(10**6, (3,), generator=torch_generator(0, "slice"))
    assert drawn.tolist() == [766142, 659117, 204099]
    assert numpy_generator(3, "a/b").integers(10**6, size=3).tolist() == [483237, 877524, 140013]
    assert seed_number_of("cat.jpg", signed=True) == -1127302171970610402
    assert seed_rank_of("a", 0) == 13225716355254514689


@pytest.mark.parametrize("bits", [1, 64])
def test_numbers_of_names_are_spread_over_all_64_bits(bits: int) -> None:
    highest = np.array(
        [seed_number_of(f"sample-{k}") >> (64 - bits) for k in range(400)], dtype=np.float64
    )

    assert abs(highest.mean() / (2**bits - 1) - 0.5) < 0.1


def test_a_draw_depends_on_seed_and_names_only_and_more_names_only_take_places() -> None:
    names = [f"sample-{k}" for k in range(50)]

    drawn = draw_by_seed(names, 10, seed=1)

    assert drawn == draw_by_seed(reversed(names), 10, seed=1) != draw_by_seed(names, 10, seed=2)
    assert draw_by_seed([*names, "more"], 10, seed=1) <= {*drawn, "more"}
