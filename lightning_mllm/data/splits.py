"""Seeded, stratified splits."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from lightning_mllm.errors import ConfigError

Split = Literal["train", "val", "test"]
Item = TypeVar("Item")


def check_fractions(val: float, test: float = 0.0) -> None:
    """Refuse fractions that leave no training data.

    Raises:
        ConfigError: One is negative, or they add up to 1 or more.
    """
    if min(val, test) < 0 or val + test >= 1:
        raise ConfigError(
            f"val_fraction is {val} and test_fraction {test}; both must be at least 0 and their sum below 1."
        )


def stratified_split(
    strata: Mapping[str, Sequence[Item]], val: float, test: float, seed: int
) -> dict[Split, list[Item]]:
    """Split each stratum (class) by the same fractions.

    Each stratum gives at least one item to each split with a fraction above 0 before training gets its second; the
    outcome depends on nothing but the arguments.

    Args:
        strata: Class -> items, in a fixed order.
        val: Fraction of the validation split.
        test: Fraction of the test split.
        seed: Seed of the choice.
    """
    check_fractions(val, test)
    splits: dict[Split, list[Item]] = {"train": [], "val": [], "test": []}
    for name, items in strata.items():
        shuffled = list(items)
        random.Random(f"{seed}/{name}").shuffle(shuffled)
        spare = len(shuffled) - 1  # one stays in train
        n_test = min(spare, max(1, round(test * len(shuffled)))) if test else 0
        n_val = min(spare - n_test, max(1, round(val * len(shuffled)))) if val else 0
        splits["test"] += shuffled[:n_test]
        splits["val"] += shuffled[n_test : n_test + n_val]
        splits["train"] += shuffled[n_test + n_val :]
    return splits
