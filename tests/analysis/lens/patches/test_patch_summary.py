"""Shares of patches by hand: own words, chance from other pictures, words of free patches."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_mllm.analysis import Bootstrap
from lightning_mllm.analysis.lens.patches.own_words import (
    FirstTokens,
    find_attribute_tokens,
    split_own_words,
)
from lightning_mllm.analysis.lens.patches.rows import PatchWordsRow
from lightning_mllm.analysis.lens.patches.summary import list_top_words, summarise_patch_words
from lightning_mllm.store.rows import Rows

# picture, own words, what four patches say, what two free patches of the picture say
OBJECTS = (
    ("p", '["red"]', '{"red": 4}', '{"red": 1}'),
    ("p", '["blue"]', '{"red": 4}', '{"red": 1}'),
    ("q", '["red"]', '{"red": 1, "blue": 2}', "{}"),
    ("r", '["green"]', "{}", '{"green": 2}'),
)


def make_rows(objects: tuple[tuple[str, str, str, str], ...] = OBJECTS) -> Rows[PatchWordsRow]:
    rows = Rows(PatchWordsRow)
    for number, (picture, own, said, free) in enumerate(objects):
        row = PatchWordsRow(
            sample_id=f"s{number}",
            picture=picture,
            label="",
            lens="logit lens",
            layer=3,
            measure="own words",
            own=own,
            patches=4,
            said=said,
            free=2,
            said_free=free,
            top=said,
        )
        rows.append({row.sample_id: [row]})
    return rows


def test_shares_are_those_by_hand() -> None:
    result = summarise_patch_words("x", make_rows().table(), {}, Bootstrap(resamples=50))
    found = result.at(measure="logit lens: own words", layer=3, statistic="value")

    own = np.array([1, 0, 0.25, 0])
    # of the objects of other pictures, how many own what each patch says
    chance = np.array([1 * 1 / 2, 1 * 1 / 2, (1 * 1 / 3 + 2 * 1 / 3) / 4, 0])
    free = np.array([0.5, 0, 0, 1])
    expected = [own.mean(), chance.mean(), (own - chance).mean(), free.mean()]
    np.testing.assert_allclose(found, expected)
    assert result.n_samples == 4


def test_who_says_the_words_of_any_picture_alike_is_at_chance() -> None:
    said = '{"blue": 2, "red": 2}'
    objects = [(f"p{k}", f'["{("red", "blue")[k % 2]}"]', said, "{}") for k in range(20)]
    result = summarise_patch_words("x", make_rows(tuple(objects)).table(), {}, Bootstrap())
    difference = result.at(measure="logit lens: own words", share="own - chance", layer=3)
    assert abs(difference[0]) < 1e-12


def test_top_words_are_shares_of_all_patches_of_a_class() -> None:
    (first, *_) = list_top_words(make_rows().table())
    assert first == ("logit lens", 3, "", 1, "red", 9 / 16, 16)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("Red", "red"),
        ("crane (bird)", "crane bird"),
        ("tench, Tinca tinca", "tench tinca"),
        ("bird of paradise", "bird paradise"),
        ("black-footed_ferret", "black-footed ferret"),
        ("Shih-Tzu's \u732b\u54aa 7", "shih-tzu's \u732b\u54aa 7"),
        ("A", "a"),
        ("+", "+"),
    ],
)
def test_own_words_are_neither_punctuation_nor_function_words(value: str, words: str) -> None:
    assert split_own_words(value) == set(words.split())


def test_values_that_begin_alike_are_left_out(tiny_llava: str) -> None:
    from tests.support.questions import tokenizer

    first = FirstTokens(tokenizer(tiny_llava))
    values = {"same": ["light red", "light blue"], "color": ["red", "blue"], "one": ["x"]}
    assert [each.name for each in find_attribute_tokens(values, first)] == ["color"]
