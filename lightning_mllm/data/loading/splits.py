"""Seeded, stratified splits that keep together what belongs together."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.store.seeds import python_random

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Item = TypeVar("Item")
# held out for validation where no fraction is named: a part, and the most samples
_DEFAULT_VAL, _MOST_VAL = 0.1, 5_000

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


def check_split_fractions(val: float | None, test: float = 0.0) -> None:
    """Refuse fractions that leave no training data; None stands for the default.

    Raises:
        ConfigError: One is negative, or they add up to 1 or more.
    """
    val = _DEFAULT_VAL if val is None else val
    if min(val, test) < 0 or val + test >= 1:
        raise ConfigError(
            f"val_fraction is {val} and test_fraction {test}; both must be at least 0 and their "
            "sum below 1."
        )


def find_val_fraction(given: float | None, count: int, source: str) -> float:
    """Return the part that is held out for validation, and say so where its default is capped.

    Args:
        given: The part that was asked for; None for a tenth, but at most 5,000 samples.
        count: How many samples there are in all.
        source: What the samples are taken from.
    """
    if given is not None:
        return given
    if round(_DEFAULT_VAL * count) <= _MOST_VAL:
        return _DEFAULT_VAL
    logger.warning(
        "About %s of the %s samples of %s are held out for validation: by default a tenth, but at "
        "most that many. Set val_fraction (%s is a tenth) to choose.",
        f"{_MOST_VAL:,}",
        f"{count:,}",
        source,
        _DEFAULT_VAL,
    )
    return _MOST_VAL / count


class ItemGroups(Sequence[list[int]]):
    """Groups of numbered items that belong together, in order of their first items.

    Args:
        first: Per item the number of the first item of its group, shape (items,).
    """

    def __init__(self, first: NDArray[np.integer]) -> None:
        self._members = np.argsort(first, kind="stable")
        owners = np.asarray(first)[self._members]
        #: the first item of each group, ascending
        self.first, starts = np.unique(owners, return_index=True)
        self._bounds = np.append(starts, len(owners))

    def __len__(self) -> int:
        """Return how many groups there are."""
        return len(self.first)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> ItemGroups: ...
    def __getitem__(self, index: int | slice) -> list[int] | ItemGroups:
        """Return the items of a group, or some neighbouring groups."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            other = copy.copy(self)
            other.first, other._bounds = self.first[start:stop], self._bounds[start : stop + 1]
            return other
        index = range(len(self))[index]
        items: list[int] = self._members[self._bounds[index] : self._bounds[index + 1]].tolist()
        return items


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
        rest = list(range(len(groups)))
        python_random(seed, name).shuffle(rest)
        lengths = list(map(len, groups))
        total = sum(lengths)
        chosen, rest = _take_groups(rest, lengths, test, total)
        splits["test"] += chain.from_iterable(map(groups.__getitem__, chosen))
        chosen, rest = _take_groups(rest, lengths, val, total)
        splits["val"] += chain.from_iterable(map(groups.__getitem__, chosen))
        splits["train"] += chain.from_iterable(map(groups.__getitem__, rest))
    return splits


def _take_groups(
    groups: list[int], lengths: Sequence[int], fraction: float, total: int
) -> tuple[list[int], list[int]]:
    """Return groups that fill a fraction of all items, and the rest, which is at least one."""
    room = max(1, round(fraction * total)) if fraction else 0
    taken: set[int] = set()
    for group in groups:
        if lengths[group] <= room and len(taken) < len(groups) - 1:
            taken.add(group)
            room -= lengths[group]
    if room and not taken and len(groups) > 1:
        taken = {min(groups, key=lengths.__getitem__)}
    chosen: list[int] = []
    rest: list[int] = []
    for group in groups:
        (chosen if group in taken else rest).append(group)
    return chosen, rest
