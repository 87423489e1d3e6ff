from __future__ import annotations

import pytest
import torch

from lightning_mllm.errors import DataError
from lightning_mllm.probing.targets import (
    encode_target_classes,
    find_target_value,
    list_target_classes,
    read_target_numbers,
)
from lightning_mllm.types import Sample, Turn

SAMPLE = Sample(
    id="a",
    kind="open",
    conversation=[Turn("user", "What?"), Turn("assistant", "two ")],
    fields={"age": 3, "site": "leg"},
)


def test_fields_label_kind_and_answer_are_found() -> None:
    named = {"age": 3, "site": "leg", "kind": "open", "answer": "two"}

    assert {name: find_target_value(SAMPLE, name, "val") for name in named} == named
    assert find_target_value(Sample(id="b", label="cat"), "label", "val") == "cat"


def test_a_missing_field_is_refused_with_the_sample_and_the_fields_that_there_are() -> None:
    with pytest.raises(DataError, match=r"Sample 'a' of the 'val' split has no 'sex'.* age, site"):
        find_target_value(SAMPLE, "sex", "val")
    with pytest.raises(DataError, match="has no 'label'"):
        find_target_value(SAMPLE, "label", "val")


def test_classes_are_sorted_texts_of_both_splits() -> None:
    classes = list_target_classes({"train": ["b", "a", "b"], "val": ["c", "a"]}, "site")

    assert classes == ("a", "b", "c")
    assert torch.equal(encode_target_classes(["c", "a"], classes), torch.tensor([2, 0]))
    assert list_target_classes({"train": [2, 1], "val": [1]}, "age") == ("1", "2")


def test_what_can_not_be_told_apart_is_refused() -> None:
    with pytest.raises(DataError, match="All 2 samples of the 'train' split have 'a' as 'site'"):
        list_target_classes({"train": ["a", "a"], "val": ["b", "a"]}, "site")
    with pytest.raises(DataError, match=r"has 1\.5, which is no class"):
        list_target_classes({"train": [1.5, 2.5], "val": []}, "age")
    with pytest.raises(DataError, match="All 2 samples of the 'val' split have 3"):
        read_target_numbers([3, 3], ["a", "b"], "age", "val")


def test_numbers_may_be_written_as_text_and_anything_else_is_refused() -> None:
    found = read_target_numbers(["1.5", 2, 3.0], ["a", "b", "c"], "age", "train")

    assert found.tolist() == [1.5, 2, 3]
    for value in ("old", True, "nan", float("inf"), None):
        with pytest.raises(DataError, match="'age' of sample 'b' in the 'train' split is"):
            read_target_numbers([1, value], ["a", "b"], "age", "train")
