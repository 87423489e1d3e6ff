import pytest

from lightning_mllm.data.splits import check_fractions, stratified_split
from lightning_mllm.errors import ConfigError

STRATA = {"a": range(100), "b": range(100, 120), "c": range(200, 203), "d": range(300, 301)}


def test_splits_are_a_partition() -> None:
    splits = stratified_split(STRATA, 0.1, 0.2, seed=0)

    chosen = [item for items in splits.values() for item in items]
    assert sorted(chosen) == sorted(item for items in STRATA.values() for item in items)


def test_each_class_is_split_by_the_fractions_and_stays_in_train() -> None:
    splits = stratified_split(STRATA, 0.1, 0.2, seed=0)

    counts = {name: [len(set(items) & set(STRATA[name])) for items in splits.values()] for name in STRATA}
    assert counts == {"a": [70, 10, 20], "b": [14, 2, 4], "c": [1, 1, 1], "d": [1, 0, 0]}


def test_the_seed_decides() -> None:
    assert stratified_split(STRATA, 0.1, 0.2, seed=0) == stratified_split(STRATA, 0.1, 0.2, seed=0)
    assert stratified_split(STRATA, 0.1, 0.2, seed=0) != stratified_split(STRATA, 0.1, 0.2, seed=1)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.0), (0.5, 0.5), (1.0, 0.0)])
def test_fractions_must_leave_training_data(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match="sum below 1"):
        check_fractions(val, test)
