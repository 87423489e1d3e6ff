"""Where a question names its options; the questions are GQA's, or like them."""

import pytest

from lightning_mllm.data.text.options import find_options
from lightning_mllm.errors import DataError
from lightning_mllm.types import Options


def marked(question: str, true: str, false: str) -> str:
    """Write [the true option] and {the false one} where they are found."""
    (start, end), (other, last) = find_options(question, Options(true, false), "q")
    signs = sorted([(start, "["), (end, "]"), (other, "{"), (last, "}")], reverse=True)
    for place, sign in signs:
        question = question[:place] + sign + question[place:]
    return question


@pytest.mark.parametrize(
    ("true", "false", "expected"),
    [
        ("empty", "full", "Is the jar {full} or [empty]?"),
        ("hat", "cap", "What is it that he wears, a [hat] or a {cap}?"),
        ("healthy", "unhealthy", "Is the food {unhealthy} or [healthy]?"),
        ("black and white", "colorful", "Is the glove {colorful} or is it [black and white]?"),
        (
            "long sleeved",
            "short sleeved",
            "How does it look, {short sleeved} or maybe [long sleeved]?",
        ),
        ("right", "left", "Is the surfer to the {left} or to the [right] of the surfboard?"),
        ("front", "behind", "Is the man in [front] of or {behind} the car?"),
        ("red", "blue", "[Red] or {blue}?"),
        ("shirt", "t-shirt", "Is it a {t-shirt} or a [shirt]?"),
        ("dog", "cat", "Which is there: a [dog], a {cat}?"),
    ],
)
def test_options_are_whole_words(true: str, false: str, expected: str) -> None:
    question = expected.translate(str.maketrans("", "", "[]{}"))
    assert marked(question, true, false) == expected


@pytest.mark.parametrize(
    ("true", "false", "expected"),
    [
        ("train car", "car", "Which vehicle is white, the [train car] or the {car}?"),
        ("taxi", "truck", "Which type of vehicle is not old, the {truck} or the truck [taxi]?"),
        ("laptop", "screen", "What device is black, the [laptop] or the laptop {screen}?"),
        ("left", "right", "Is the left hand to the [left] or to the {right} of the right cup?"),
        (
            "right",
            "left",
            "Is the right or middle cup to the {left} or the [right] of the left one?",
        ),
    ],
)
def test_of_words_that_are_repeated_those_around_the_or_are_meant(
    true: str, false: str, expected: str
) -> None:
    question = expected.translate(str.maketrans("", "", "[]{}"))
    assert marked(question, true, false) == expected


@pytest.mark.parametrize(
    ("true", "false", "expected"),
    [
        ("phone", "laptop", "What type of device is orange, the [telephone] or the {laptop}?"),
        ("giraffes", "elephant", "Which kind of animal is this, {elephants} or [giraffes]?"),
        ("giraffes", "elephant", "Which animals are that, [giraffes] or {elephants}?"),
    ],
)
def test_a_longer_form_of_the_word_counts_next_to_the_or(
    true: str, false: str, expected: str
) -> None:
    question = expected.translate(str.maketrans("", "", "[]{}"))
    assert marked(question, true, false) == expected


@pytest.mark.parametrize(
    ("question", "name", "option"),
    [
        ("What does he wear, a cap or a shirt?", "true", "hat"),
        ("Is it a hat or a scarecrow's coat?", "false", "crow"),
        ("Is it a hat or not?", "false", " "),
    ],
)
def test_an_option_that_is_not_there_is_refused(question: str, name: str, option: str) -> None:
    options = Options("hat", option) if name == "false" else Options(option, "cap")
    with pytest.raises(
        DataError, match=rf"sample 'q-7' does not name its {name} option '{option}'.* Correct the"
    ):
        find_options(question, options, "q-7")


@pytest.mark.parametrize(
    "question",
    ["Red cups, blue cups, red plates?", "Is it red, or red, or blue?"],
    ids=["no or", "twice as near"],
)
def test_options_that_stand_in_several_places_are_refused(question: str) -> None:
    options = Options("red", "blue") if "cups" in question else Options("red", "red")
    with pytest.raises(
        DataError,
        match=r"sample 'q' has the options 'red' and .* places, .*Name them once, with an 'or'",
    ):
        find_options(question, options, "q")
