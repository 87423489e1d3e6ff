"""Seeded, stratified splits that keep together what belongs together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal, TypeVar

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.store.seeds import python_random

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Item = TypeVar("Item")

logger = logging.getLogger(__name__)


def check_splits(wanted: Sequence[Split], present: Sequence[Split], dataset: str) -> None:
    """Refuse a split that a dataset does not have.

    Raises:
        DataError: There is one among the wanted.
    """
    absent = [split for split in wanted if split not in present]
    if absent:
        way_out = "Name another one (`split` of analyze and of callbacks)."
        if absent[0] != "test":
            way_out = "Use it to test or analyse a model that is trained on another dataset."
        raise DataError(
            f"{dataset} has no {absent[0]!r} split, only {', '.join(map(repr, present))}. {way_out}"
        )


def warn_of_split_seed(trained: int, seed: int, dataset: str) -> None:
    """Warn where a model was trained with another seed than the dataset at hand has."""
    if trained != seed:
        logger.warning(
            "The checkpoint was trained with seed %d of %s, which now has seed %d: where the seed "
            "decides the split, the model has learnt some of these samples. Give "
            "--data.init_args.seed %d.",
            trained,
            dataset,
            seed,
            trained,
        )


def check_split_fractions(val: float, test: float = 0.0) -> None:
    """Refuse fractions that leave no training data.

    Raises:
        ConfigError: One is negative, or they add up to 1 or more.
    """
    if min(val, test) < 0 or val + test >= 1:
        raise ConfigError(
            f"val_fraction is {val} and test_fraction {test}; both must be at least 0 and their "
            "sum below 1."
        )


def stratified_split(
    strata: Mapping[str, Sequence[Sequence[Item]]], val: float, test: float, seed: int
) -> dict[Split, list[Item]]:
    """Split each stratum (class) by the same fractions; groups of items stay together.

    Groups are taken as long as they fit into a fraction of the stratum's items. Before training
    gets a second group, each split with a fraction above 0 gets at least one: the smallest, if
    none fits. The outcome depends on nothing but the arguments.

    Args:
        strata: Class -> groups of items, in a fixed order.
        val: Fraction of the validation split.
        test: Fraction of the test split.
        seed: Seed of the choice.
    """
    check_split_fractions(val, test)
    splits: dict[Split, list[Item]] = {"train": [], "val": [], "test": []}
    for name, groups in strata.items():
        rest = list(groups)
        python_random(seed, name).shuffle(rest)
        total = sum(map(len, rest))
        chosen, rest = _take_groups(rest, test, total)
        splits["test"] += chain(*chosen)
        chosen, rest = _take_groups(rest, val, total)
        splits["val"] += chain(*chosen)
        splits["train"] += chain(*rest)
    return splits


def _take_groups(
    groups: list[Sequence[Item]], fraction: float, total: int
) -> tuple[list[Sequence[Item]], list[Sequence[Item]]]:
    """Return groups that fill a fraction of all items, and the rest, which is at least one."""
    room = max(1, round(fraction * total)) if fraction else 0
    taken: set[int] = set()
    for index, group in enumerate(groups):
        if len(group) <= room and len(taken) < len(groups) - 1:
            taken.add(index)
            room -= len(group)
    if room and not taken and len(groups) > 1:
        taken = {min(range(len(groups)), key=lambda index: len(groups[index]))}
    chosen: list[Sequence[Item]] = []
    rest: list[Sequence[Item]] = []
    for index, group in enumerate(groups):
        (chosen if index in taken else rest).append(group)
    return chosen, rest
