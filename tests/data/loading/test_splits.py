import numpy as np
import pytest

from lightning_mllm.data.loading.splits import (
    ItemGroups,
    check_split_fractions,
    find_val_fraction,
    stratified_split,
)
from lightning_mllm.errors import ConfigError

STRATA = {
    name: [[item] for item in items]
    for name, items in {
        "a": range(100),
        "b": range(100, 120),
        "c": range(200, 203),
        "d": range(300, 301),
    }.items()
}


def test_splits_are_a_partition() -> None:
    splits = stratified_split(STRATA, 0.1, 0.2, seed=0)

    chosen = [item for items in splits.values() for item in items]
    assert sorted(chosen) == sorted(item for groups in STRATA.values() for (item,) in groups)


def test_each_class_is_split_by_the_fractions_and_stays_in_train() -> None:
    splits = stratified_split(STRATA, 0.1, 0.2, seed=0)

    counts = {
        name: [sum([item] in groups for item in items) for items in splits.values()]
        for name, groups in STRATA.items()
    }
    assert counts == {"a": [70, 10, 20], "b": [14, 2, 4], "c": [1, 1, 1], "d": [1, 0, 0]}


def test_the_seed_decides() -> None:
    assert stratified_split(STRATA, 0.1, 0.2, seed=0) == stratified_split(STRATA, 0.1, 0.2, seed=0)
    assert stratified_split(STRATA, 0.1, 0.2, seed=0) != stratified_split(STRATA, 0.1, 0.2, seed=1)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.0), (0.5, 0.5), (1.0, 0.0)])
def test_fractions_must_leave_training_data(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match="sum below 1"):
        check_split_fractions(val, test)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_split_and_the_fractions_are_of_items(seed: int) -> None:
    groups = [range(start, start + 1 + start % 7) for start in range(0, 700, 7)]
    total = sum(map(len, groups))

    splits = stratified_split({"": groups}, 0.1, 0.2, seed)

    for group in groups:
        assert sum(bool({*group} & {*items}) for items in splits.values()) == 1
    assert (len(splits["val"]), len(splits["test"])) == (round(0.1 * total), round(0.2 * total))


@pytest.mark.parametrize("seed", range(5))
def test_a_group_too_large_for_a_fraction_stays_in_train(seed: int) -> None:
    splits = stratified_split({"": [range(80), range(80, 90), range(90, 100)]}, 0.1, 0, seed)

    assert len(splits["val"]) == 10
    assert stratified_split({"": [range(80), range(80, 100)]}, 0.1, 0, seed)["val"] == [
        *range(80, 100)
    ]
    assert stratified_split({"": [range(80)]}, 0.1, 0.1, seed) == {
        "train": [*range(80)],
        "val": [],
        "test": [],
    }


def test_the_default_validation_split_is_a_tenth_up_to_a_bound_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert find_val_fraction(None, 50_000, "x") == 0.1
    assert find_val_fraction(0.1, 665_000, "x") == 0.1
    assert not caplog.records
    assert find_val_fraction(None, 665_000, "x.json") * 665_000 == pytest.approx(5_000)
    assert "About 5,000 of the 665,000 samples of x.json are held out" in caplog.text


def test_numbered_groups_are_the_same_groups_as_lists() -> None:
    first = np.array([0, 1, 0, 3, 1, 0])
    groups = ItemGroups(first)

    assert list(groups) == [[0, 2, 5], [1, 4], [3]]
    assert list(groups[1:]) == [[1, 4], [3]]
    lists = {"": [[0, 2, 5], [1, 4], [3]]}
    assert stratified_split({"": groups}, 0.3, 0.2, 1) == stratified_split(lists, 0.3, 0.2, 1)
