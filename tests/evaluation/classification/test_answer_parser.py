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


LESIONS = ("benign", "malignant", "melanoma", "healthy", "infected", "benign nevus")
CRISIS = ("humanitarian", "not humanitarian", "damage", "no damage", "infectious", "non-infectious")
PLANTS = ("rust", "blight", "mildew", "leaf spot", "healthy", "one")


@pytest.mark.parametrize(
    ("names", "answer", "expected"),
    [
        # denied, and nothing else is named
        (LESIONS, "It is not healthy.", None),
        (LESIONS, "It is not benign.", None),
        (LESIONS, "non-melanoma", None),
        (LESIONS, "Non melanoma", None),
        (LESIONS, "nonmelanoma", None),
        (LESIONS, "un-healthy", None),
        (LESIONS, "unhealthy", None),
        (LESIONS, "This isn't healthy", None),
        (LESIONS, "This isn\u2019t healthy", None),
        (LESIONS, "it doesnt look healthy", None),
        (LESIONS, "The skin cannot be called healthy.", None),
        (LESIONS, "no melanoma", None),
        (LESIONS, "There is no sign of melanoma.", None),
        (LESIONS, "a mole without melanoma", None),
        (LESIONS, "Melanoma is ruled out.", None),
        (LESIONS, "We can rule out melanoma", None),
        (LESIONS, "Melanoma is unlikely.", None),
        (LESIONS, "It is unlikely to be melanoma", None),
        (LESIONS, "melanoma is very unlikely here", None),
        (LESIONS, "Melanoma is not what this looks like", None),
        (LESIONS, "healthy it is not", None),
        (LESIONS, "far from healthy", None),
        (LESIONS, "anything but healthy", None),
        (LESIONS, "never healthy", None),
        (LESIONS, "negative for melanoma", None),
        (LESIONS, "melanoma-free", None),
        (LESIONS, "free of melanoma", None),
        (LESIONS, "Melanoma: no", None),
        (LESIONS, "Melanoma? No.", None),
        (LESIONS, "not so healthy", None),
        (LESIONS, "This is not, in my opinion, a healthy leaf", None),
        (LESIONS, "neither healthy nor infected", None),
        (LESIONS, "no one can tell whether it is healthy", None),
        (PLANTS, "no one", None),
        (PLANTS, "It has no rust, blight or mildew.", None),
        (PLANTS, "no rust, blight", None),
        (PLANTS, "no rust and blight", None),
        # denied twice, or no negation to be sure of
        (LESIONS, "It is not non-melanoma", None),
        (LESIONS, "not unlikely melanoma", None),
        (LESIONS, "melanoma can't be ruled out", None),
        (LESIONS, "melanoma can not be excluded", None),
        (LESIONS, "a melanoma-like mole", None),
        (LESIONS, "pre-melanoma", None),
        (LESIONS, "healthy and not healthy", None),
        (LESIONS, "Is it healthy? No, infected.", None),
        # one is denied, another named
        (LESIONS, "It is not benign but malignant.", "malignant"),
        (LESIONS, "not benign, but malignant", "malignant"),
        (LESIONS, "It is not benign; it is malignant.", "malignant"),
        (LESIONS, "This isn't benign, it's malignant", "malignant"),
        (LESIONS, "malignant, not benign", "malignant"),
        (LESIONS, "malignant rather than benign", "malignant"),
        (LESIONS, "malignant instead of benign", "malignant"),
        (LESIONS, "The lesion is malignant and not benign.", "malignant"),
        (LESIONS, "malignant (not benign)", "malignant"),
        (LESIONS, "Melanoma is unlikely, it is a benign nevus", "benign nevus"),
        (LESIONS, "It is healthy, not infected.", "healthy"),
        (PLANTS, "neither rust nor blight, but leaf spot", "leaf spot"),
        (PLANTS, "healthy with no rust", "healthy"),
        (PLANTS, "healthy, without rust or blight", "healthy"),
        (PLANTS, "a rust-free, healthy plant", "healthy"),
        (PLANTS, "no rust and no blight; healthy", "healthy"),
        # something else is denied
        (LESIONS, "No, it is healthy.", "healthy"),
        (LESIONS, "The leaf is healthy and shows no spots", "healthy"),
        (LESIONS, "healthy, no disease", "healthy"),
        (LESIONS, "I am not sure, but it looks like melanoma", "melanoma"),
        (LESIONS, "There is no doubt that it is melanoma.", "melanoma"),
        (LESIONS, "nothing but healthy skin", "healthy"),
        # names that deny something themselves
        (CRISIS, "not humanitarian", "not humanitarian"),
        (CRISIS, "It is not humanitarian.", "not humanitarian"),
        (CRISIS, "The tweet is humanitarian", "humanitarian"),
        (CRISIS, "It isn't humanitarian.", None),
        (CRISIS, "It is not not humanitarian", None),
        (CRISIS, "There is no damage.", "no damage"),
        (CRISIS, "There is no damage, not much is seen", "no damage"),
        (CRISIS, "There is not any damage.", None),
        (CRISIS, "It is non-infectious.", "non-infectious"),
        (CRISIS, "not infectious", None),
        (CRISIS, "not non-infectious", None),
        # other languages
        (("gesund", "krank"), "Das Blatt ist nicht gesund.", None),
        (("gesund", "krank"), "kein gesund", None),
        (("sain", "malade"), "La feuille n'est pas saine, sans malade", None),
        (("sano", "enfermo"), "No est\u00e1 sano", None),
        (("\u5065\u5eb7", "\u751f\u75c5"), "\u4e0d\u5065\u5eb7", None),
        (("\u5065\u5eb7", "\u751f\u75c5"), "\u975e\u5e38\u5065\u5eb7\u3002", "\u5065\u5eb7"),
        (("\u5065\u5eb7", "\u751f\u75c5"), "\u4e0d\u5065\u5eb7\u3002\u751f\u75c5", "\u751f\u75c5"),
    ],
)
def test_what_an_answer_denies_it_does_not_name(
    names: tuple[str, ...], answer: str, expected: str | None
) -> None:
    parsed = AnswerParser(names).parse(answer)

    assert parsed == (INVALID if expected is None else names.index(expected))


def test_a_character_that_marks_names_names_none() -> None:
    assert AnswerParser(("rust", "blight")).parse("\U000f0000 \U000f0005") == INVALID
    assert AnswerParser(("rust", "blight")).parse("\U000f0000 blight") == 1
