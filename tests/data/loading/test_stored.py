import pickle
from typing import Any

import numpy as np
import pytest

from lightning_mllm.data.loading.stored import Column, StoredSamples
from lightning_mllm.data.loading.text_array import TextArray, unique_texts
from lightning_mllm.types import Sample

TEXTS = ["a", "", "bcé", "\udc80", "a", "名前"]


class Named(StoredSamples):
    def make(self, index: int) -> Sample:
        return Sample(id=str(self.columns["name"][index]), label="a_b" if index % 2 else "c")


def named(names: Any = TEXTS) -> Named:
    return Named({"name": TextArray.of(names)}, {"file": "x"})


def test_a_text_array_is_a_sequence_of_its_texts() -> None:
    texts = TextArray.of(TEXTS)

    for same in (texts, pickle.loads(pickle.dumps(texts)), TextArray.of([])):
        assert list(same) == (TEXTS if len(same) else [])
    assert texts[-1] == TEXTS[-1]
    assert list(texts[1:4]) == TEXTS[1:4]
    assert list(texts.take([5, 0, 0])) == [TEXTS[5], "a", "a"]
    with pytest.raises(IndexError):
        texts[6]


def test_different_texts_are_numbered_by_their_first_places() -> None:
    unique, numbers = unique_texts(TextArray.of(TEXTS), ["x", "a"], [])

    assert list(unique) == ["a", "", "bcé", "\udc80", "名前", "x"]
    assert [each.tolist() for each in numbers] == [[0, 1, 2, 3, 0, 4], [5, 0], []]
    assert unique_texts()[1] == []


def test_stored_samples_are_a_sequence_and_so_are_parts_of_them() -> None:
    samples = named()

    assert [sample.id for sample in samples] == TEXTS
    assert samples[-1].id == TEXTS[-1]
    for part in (samples[1:3], samples.select([1, 2])):
        assert isinstance(part, Named)
        assert [sample.id for sample in part] == TEXTS[1:3]


def test_labels_are_renamed_one_after_another() -> None:
    samples = named().with_labels({"a_b": "a b"})

    assert samples.list_labels() == ["c", "a b"]
    assert samples.with_labels({"a b": "d", "c": "e"}).list_labels() == ["e", "d"]


def test_equal_columns_sources_and_labels_have_equal_digests() -> None:
    assert named().digest() == named().digest()
    others = [named(TEXTS[::-1]), named().with_labels({"c": "d"}), named()[:5]]
    assert len({each.digest() for each in (*others, named())}) == 4
    columns: dict[str, Column] = {"name": TextArray.of(TEXTS), "number": np.arange(6)}
    assert Named(columns, {"file": "x"}).digest() != named().digest()
