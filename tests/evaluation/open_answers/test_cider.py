"""CIDEr-D against worked values, and its laws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_mllm.errors import DataError
from lightning_mllm.evaluation.open_answers.cider import (
    cider_d,
    read_references,
    score_captions,
    split_words,
)

DOG = ["a dog runs fast", "the dog runs"]
BALL = ["a red ball", "the ball lies on green grass"]


def test_scores_are_those_of_a_public_implementation() -> None:
    scores = cider_d(["a dog runs", "a red ball on grass"], [DOG, BALL])  # by aac-metrics 0.6.0

    assert scores.tolist() == pytest.approx([4.75977902, 3.18188314], abs=1e-8)


def test_a_score_can_be_worked_out_by_hand() -> None:
    # weights: "a" and "the" are said of both pictures: 0; all else of one: ln 2, which cancels.
    # one word: (dog, runs) against (dog): cosine 1 / sqrt 2; two words: "the dog", "dog runs"
    # against "the dog": the same; longer ones have none in common; 1 pair less: exp(-1 / 72)
    (score, _) = cider_d(["the dog", "a"], [["the dog runs"], ["a ball the ball"]])

    assert score == pytest.approx(10 * np.exp(-1 / 72) * (2 / np.sqrt(2)) / 4)


def test_a_reference_itself_has_ten_and_foreign_words_have_none() -> None:
    texts = ["a brown dog runs", "two men play chess"]

    assert cider_d(texts, [[text] for text in texts]).tolist() == pytest.approx([10, 10])
    assert cider_d(texts, [[text] for text in texts[::-1]]).tolist() == [0, 0]
    assert cider_d(["", "x"], [[text] for text in texts]).tolist() == [0, 0]


def test_neither_case_nor_punctuation_nor_order_of_references_matter() -> None:
    plain = cider_d(["a dog runs", "red ball"], [DOG, BALL])

    found = cider_d(["A dog, runs.", "Red ball!"], [DOG[::-1], [text.title() for text in BALL]])
    assert found.tolist() == pytest.approx(plain.tolist())
    assert split_words("A T-shirt: the man's.") == ["a", "t-shirt", "the", "man", "'s"]


def test_shuffled_captions_are_held_against_the_references_of_others() -> None:
    captions = {"one": "a dog runs", "two": "a red ball"}
    references = {"one": DOG, "two": BALL}

    result = score_captions(captions, references, ["p", "q"])

    others = cider_d(list(captions.values()), [BALL, DOG])
    assert result.shuffled.tolist() == others.tolist()
    summary = json.loads(json.dumps(result.summary()))
    assert summary["n"] == 2
    low, high = summary["cider_d_interval_95"]
    assert low <= summary["cider_d"] <= high


def test_several_captions_of_a_picture_are_shuffled_to_another_and_count_it_once() -> None:
    captions = {"one": "a dog runs", "two": "the dog", "three": "a red ball"}
    references = {"one": DOG, "two": DOG, "three": BALL}

    result = score_captions(captions, references, ["p", "p", "q"])

    once = score_captions({"one": "a dog runs", "three": "a red ball"}, references, ["p", "q"])
    assert result.scores[[0, 2]].tolist() == pytest.approx(once.scores.tolist())
    assert result.shuffled[[0, 2]].tolist() == pytest.approx(once.shuffled.tolist())
    with pytest.raises(DataError, match="there are 1 pictures"):
        score_captions({"one": "a dog", "two": "a cat"}, references, ["p", "p"])


def test_what_can_not_be_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are 1 pictures\. Score the captions of two"):
        cider_d(["a dog"], [DOG])
    file = tmp_path / "references.json"
    with pytest.raises(DataError, match="can't be read"):
        read_references(file)
    file.write_text('["a dog"]')
    with pytest.raises(DataError, match="must hold a JSON object from sample ids"):
        read_references(file)
    file.write_text('{"one": []}')
    with pytest.raises(DataError, match="sample 'one' needs a list of captions"):
        read_references(file)
