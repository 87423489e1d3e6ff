"""Questions ask for what captions agree on, and are balanced."""

from __future__ import annotations

from collections import Counter

import pytest

from lightning_mllm.real.captions import caption_rows, tidy_caption
from lightning_mllm.real.questions import count_things, find_colour, make_questions

DOG = ["a brown dog leaps over a log .", "the brown dog is in mid-air .", "a log in a forest ."]
HORSE = ["a woman rides a horse .", "a horse with its rider .", "somebody on horseback ."]
STREET = ["cars wait at a red light .", "traffic in a narrow street .", "a street at noon ."]


def asked(captions: dict[str, list[str]], kind: str) -> list[tuple[str, str, str]]:
    questions = make_questions(captions, seed=0)
    return [(each.image, each.text, each.answer) for each in questions if each.kind == kind]


def test_presence_is_asked_as_often_where_the_answer_is_yes_as_where_it_is_no() -> None:
    captions = {"dog-1": DOG, "dog-2": DOG, "horse": HORSE, "street-1": STREET, "street-2": STREET}
    rows = asked(captions, "presence")
    counts = Counter((text, answer) for _, text, answer in rows)
    assert counts
    for text, _ in counts:
        assert counts[text, "yes"] == counts[text, "no"]


def test_no_is_not_the_answer_where_a_caption_hints_at_the_thing() -> None:
    hinting = ["an animal on a lawn .", "something furry .", "a sunny day ."]
    rows = asked({"dog": DOG, "hinting": hinting, "street": STREET}, "presence")
    about_dogs = {image: answer for image, text, answer in rows if "dog" in text}
    assert about_dogs == {"dog": "yes", "street": "no"}


def test_one_caption_alone_decides_nothing() -> None:
    once = ["a dog .", "a street .", "cars ."]
    assert not [
        row for row in asked({"once": once, "street": STREET}, "presence") if "dog" in row[1]
    ]


def test_each_choice_is_asked_of_a_picture_with_the_one_and_of_one_with_the_other() -> None:
    captions = {f"dog-{k}": DOG for k in range(30)} | {f"horse-{k}": HORSE for k in range(30)}
    rows = asked(captions, "choice")
    assert rows
    assert len({text for _, text, _ in rows}) == 1
    assert Counter(answer for _, _, answer in rows) == {"dog": 15, "horse": 15}


def test_no_count_is_more_frequent_than_the_second() -> None:
    one, two = ["a dog runs .", "one dog ."], ["two dogs run .", "a dog and another dog ."]
    captions = {f"one-{k}": one for k in range(9)} | {f"two-{k}": two for k in range(4)}
    answers = Counter(answer for _, _, answer in asked(captions, "count"))
    assert answers == {"one": 4, "two": 4}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a dog runs", 1),
        ("two brown dogs run", 2),
        ("a black dog and a white dog", 2),
        ("a dog chases another small dog", 2),
        ("dog running after another dog", 2),
        ("small dog in a field", 1),
        ("three dogs and a dog", 4),
        ("the dog runs", None),
        ("dogs run", None),
        ("two dog", None),
        ("no such animal", None),
        ("four dogs and a dog", None),
    ],
)
def test_a_count_is_what_a_caption_says_or_nothing(text: str, count: int | None) -> None:
    assert count_things(text, "dog", "dogs") == count


@pytest.mark.parametrize(
    ("texts", "colour"),
    [
        (["a brown dog", "the small brown dog"], "brown"),
        (["a brown dog", "a dog"], None),
        (["a brown dog", "a black dog"], None),
        (["a black and white dog", "a black and white dog"], None),
        (["a tan dog", "a tan dog"], None),
        (["a brown dog and a brown dog", "a brown dog"], None),
        (["two brown dogs", "a brown dog", "a brown dog"], None),
        (["a man in red with a brown dog", "a brown dog"], "brown"),
    ],
)
def test_a_colour_is_what_two_captions_say_and_none_denies(
    texts: list[str], colour: str | None
) -> None:
    assert find_colour(texts, "dog") == colour


def test_the_same_seed_asks_the_same() -> None:
    captions = {f"dog-{k}": DOG for k in range(9)} | {f"street-{k}": STREET for k in range(12)}
    assert make_questions(captions, 1) == make_questions(captions, 1)
    assert make_questions(captions, 1) != make_questions(captions, 2)


def test_a_caption_becomes_a_sentence_and_each_has_a_row_of_its_own() -> None:
    assert tidy_caption("a dog 's ball , in the air .") == "A dog's ball, in the air."
    rows = list(caption_rows({"one.jpg": ["a dog .", "a cat"]}))
    assert [row["id"] for row in rows] == ["one#0", "one#1"]
    assert rows[1]["conversations"][1]["value"] == "A cat."
    assert len(list(caption_rows({"one.jpg": ["a dog .", "a cat"]}, most=1))) == 1
