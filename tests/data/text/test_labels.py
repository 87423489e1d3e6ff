import re

import pytest

from lightning_mllm.data.text.labels import collect_labels, normalise_label
from lightning_mllm.errors import DataError


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Bell_pepper leaf", "Bell pepper leaf"),
        (" two  words ", "two words"),
        ("a__b", "a b"),
        ("Bla\u0308tter", "Bl\u00e4tter"),
    ],
)
def test_words_are_kept(raw: str, name: str) -> None:
    assert normalise_label(raw) == name


def test_names_are_sorted_and_unique() -> None:
    assert collect_labels(["two", "one_a", "two"]) == ("one a", "two")


@pytest.mark.parametrize(
    "twin",
    [
        "bell pepper",
        "Bell pepper",
        "Bell__pepper ",
        "Bell pepper.",
        "'bell pepper'",
        "bell pepper \u201d.",
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(twin: str) -> None:
    with pytest.raises(
        DataError, match="are the same but for case, underscores and blanks"
    ) as caught:
        collect_labels(["Bell_pepper", twin, "other"])
    assert repr("Bell_pepper") in str(caught.value)
    assert repr(twin) in str(caught.value)


def test_letters_with_marks_are_one_class_however_they_are_written() -> None:
    with pytest.raises(DataError, match="are the same but for"):
        collect_labels(["Bla\u0308tter", "Bl\u00e4tter"])


@pytest.mark.parametrize("name", ["_", "", ".", "''"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"class name {name!r} is empty")):
        collect_labels([name, "a"])
