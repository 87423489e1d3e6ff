"""Which words of which texts a bank keeps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lightning_mllm.analysis.lens.bank.contexts import draw_bank_contexts, grow_to_word
from lightning_mllm.errors import DataError
from tests.support.questions import tokenizer

TEXTS = (
    "the red circle is left of the blue square",
    "the red circle is above the red star",
    "the red circle is left of the blue square",
    "a blue square, and a red circle below the star",
)


def draw(checkpoint: str, texts: Any = TEXTS, per_token: int = 20, seed: int = 0) -> set[str]:
    options: dict[str, Any] = {"per_token": per_token, "seed": seed, "max_length": 64}
    drawn = draw_bank_contexts(texts, tokenizer(checkpoint), **options)
    return {f"{each.token_id} {each.position} {each.context}" for each in drawn}


def test_the_order_of_the_texts_and_texts_that_come_twice_change_nothing(tiny_llava: str) -> None:
    for per_token in (1, 2, 20):
        whole = draw(tiny_llava, per_token=per_token)
        assert draw(tiny_llava, TEXTS[::-1], per_token) == whole
        assert draw(tiny_llava, [*TEXTS, *TEXTS], per_token) == whole


def test_equal_beginnings_are_one_context(tiny_llava: str) -> None:
    begins_alike = [f"the red circle is {end}" for end in ("here", "there")]
    drawn = draw_bank_contexts(
        begins_alike, tokenizer(tiny_llava), per_token=20, seed=0, max_length=64
    )
    prefixes = Counter(tokenizer(tiny_llava)(begins_alike[0])["input_ids"][2:5])
    assert all(
        sum(each.token_id == token and each.position < 5 for each in drawn) == count
        for token, count in prefixes.items()
    )


def test_no_token_has_more_contexts_than_asked_for_and_the_first_two_positions_none(
    tiny_llava: str,
) -> None:
    drawn = draw_bank_contexts(TEXTS, tokenizer(tiny_llava), per_token=2, seed=0, max_length=64)
    assert max(Counter(each.token_id for each in drawn).values()) == 2
    assert min(each.position for each in drawn) == 2


def test_fewer_contexts_are_a_part_of_more_and_another_seed_draws_others(tiny_llava: str) -> None:
    texts = [f"{first} {second} is red" for first in "abcdefg" for second in "hijklmn"]
    assert draw(tiny_llava, texts, 3) < draw(tiny_llava, texts, 6)
    assert draw(tiny_llava, texts, 3, seed=1) != draw(tiny_llava, texts, 3)


@pytest.mark.parametrize(
    ("text", "part", "word"),
    [
        ("a small striped ring", "rip", "striped"),
        ("a small striped ring", " striped", "striped"),
        ("small, striped", ",", ","),
        ("the well-known man's hat", "known", "well-known"),
        ("the man's hat", "an", "man's"),
        ("'quoted' words", "uote", "quoted"),
        ("na\u00efve cafe\u0301 here", "caf", "cafe\u0301"),
        ("\u7ea2\u8272\u7684\u5706", "\u8272", "\u8272"),
        ("in 2024 it", "02", "2024"),
    ],
)
def test_a_part_of_a_word_grows_to_the_whole_word(text: str, part: str, word: str) -> None:
    start = text.index(part)
    first, end = grow_to_word(text, start, start + len(part))
    assert text[first:end] == word


def test_texts_that_are_too_short_are_refused(tiny_llava: str) -> None:
    with pytest.raises(DataError, match="None of 2 texts has a token after its first two"):
        draw(tiny_llava, ["a", ""])
