from __future__ import annotations

import pytest

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation import INVALID, AnswerParser, normalise

NAMES = ("leaf", "leaf spot", "Bell pepper leaf", "rust", "C++", "baker's")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rust", "rust"),
        ("  rust \n", "rust"),
        ('"rust"', "rust"),
        ('"rust".', "rust"),
        ("'Rust.'", "rust"),
        ("\u201cRust\u201d.", "rust"),
        ("bell_pepper   leaf", "bell pepper leaf"),
        ("bell\n\tpepper__leaf", "bell pepper leaf"),
        ("STRASSE", "strasse"),
        ("Stra\u00dfe", "strasse"),
        ("baker's", "baker's"),
        ("v1.5", "v1.5"),
        (" . ", ""),
    ],
)
def test_normalise_folds_only_what_does_not_change_the_meaning(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("rust", "rust"),
        ('"Rust".', "rust"),
        ("BELL_PEPPER LEAF", "Bell pepper leaf"),
        ("The disease is rust.", "rust"),
        ("rust, rust and rust", "rust"),
        ("It shows leaf spot.", "leaf spot"),  # the longer name hides the shorter inside it
        ("leaf spot on a leaf", None),  # but not one beside it
        ("a bell pepper leaf", "Bell pepper leaf"),
        ("either rust or leaf", None),
        ("rusty", None),  # whole words only
        ("crust", None),
        ("C++ code", "C++"),
        ("spot", None),  # a part of a name is not the name
        ("pepper", None),
        ("", None),
        ("?", None),
        ("mildew", None),
    ],
)
def test_an_answer_is_the_one_class_that_it_names(answer: str, expected: str | None) -> None:
    parsed = AnswerParser(NAMES).parse(answer)

    assert parsed == (INVALID if expected is None else NAMES.index(expected))


@pytest.mark.parametrize("name", NAMES)
def test_every_class_name_is_parsed_as_itself(name: str) -> None:
    assert AnswerParser(NAMES).parse(name) == NAMES.index(name)


def test_the_order_of_the_classes_does_not_matter() -> None:
    answers = ["leaf spot on a leaf", "leaf spot", "a leaf", "rust"]
    forward, backward = AnswerParser(NAMES), AnswerParser(NAMES[::-1])

    for answer in answers:
        index = forward.parse(answer)
        mirrored = backward.parse(answer)
        assert index == (INVALID if mirrored == INVALID else len(NAMES) - 1 - mirrored)


def test_names_that_differ_only_in_spelling_are_refused() -> None:
    with pytest.raises(DataError, match="'Leaf_spot' and 'leaf spot' differ only in case"):
        AnswerParser(("Leaf_spot", "leaf spot"))


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(DataError, match=r"Class 1 is named '\.\.\.'"):
        AnswerParser(("leaf", "..."))


def test_scripts_without_blanks_need_no_word_borders() -> None:
    parser = AnswerParser(("\u732b", "\u72ac"))

    assert parser.parse("\u8fd9\u662f\u732b\u3002") == 0
    assert parser.parse("\u732b\u548c\u72ac") == INVALID


def test_unicode_forms_of_a_name_are_the_same_name() -> None:
    assert AnswerParser(("Bl\u00e4tter", "Rinde")).parse("Bla\u0308tter") == 0
    with pytest.raises(DataError, match="differ only in"):
        AnswerParser(("Bl\u00e4tter", "Bla\u0308tter"))


def test_a_word_that_contains_a_name_does_not_name_it() -> None:
    assert AnswerParser(("one", "two")).parse("None of them.") == INVALID
