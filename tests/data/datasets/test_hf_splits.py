from typing import Any

import numpy as np
import pytest

from lightning_mllm.data.datasets.hf_pictures import TableFacts
from lightning_mllm.data.datasets.hf_splits import HFSplit, find_split_names, link_rows
from lightning_mllm.data.loading.splits import SPLITS
from lightning_mllm.errors import DataError
from tests.support.hf_facts import facts_of


def names(present: str, **given: str) -> dict[str, Any]:
    asked: Any = {split: given.get(split) for split in SPLITS}
    found: Any = find_split_names(asked, present.split(), "beans")
    return dict(found)


def test_splits_are_found_by_their_usual_names() -> None:
    assert names("train validation test") == {
        "train": HFSplit("train"),
        "val": HFSplit("validation"),
        "test": HFSplit("test"),
    }
    assert names("dev training extra") == {"train": HFSplit("training"), "val": HFSplit("dev")}


def test_the_only_split_is_shared_by_all() -> None:
    assert names("validation") == dict.fromkeys(SPLITS, HFSplit("validation", SPLITS))


def test_validation_comes_out_of_training_if_there_is_none() -> None:
    shared = HFSplit("train", ("train", "val"))

    assert names("train test") == {"train": shared, "val": shared, "test": HFSplit("test")}
    assert names("val", test="val") == {
        "train": HFSplit("val", ("train", "val")),
        "val": HFSplit("val", ("train", "val")),
        "test": HFSplit("val"),
    }


def test_a_split_can_be_named() -> None:
    found = names("train validation", val="train", test="validation")

    assert found == {
        "train": HFSplit("train"),
        "val": HFSplit("train"),
        "test": HFSplit("validation"),
    }
    assert names("train validation", test="validation") == {
        "train": HFSplit("train", ("train", "val")),
        "val": HFSplit("train", ("train", "val")),
        "test": HFSplit("validation"),
    }
    with pytest.raises(DataError, match="beans has no split 'dev'; it has 'train', 'validation'"):
        names("train validation", val="dev")


def test_rows_are_linked_by_their_pictures_also_through_others() -> None:
    facts: TableFacts = facts_of([["a"], ["b"], [], ["a", "c"], ["d"], ["c"]])

    groups = link_rows(facts, 6)

    linked = [np.flatnonzero(groups == group).tolist() for group in dict.fromkeys(groups.tolist())]
    assert linked == [[0, 3, 5], [1], [2], [4]]


def test_rows_are_linked_with_their_partners() -> None:
    facts: TableFacts = facts_of([["a"], ["b"], ["c"], ["d"], ["b"]])

    groups = link_rows(facts, 5, np.array([[0, 3], [1, 2]]))

    linked = [np.flatnonzero(groups == group).tolist() for group in dict.fromkeys(groups.tolist())]
    assert linked == [[0, 1, 4], [2, 3]]
