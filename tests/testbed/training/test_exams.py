import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest
from sklearn.feature_extraction import DictVectorizer  # type: ignore[import-untyped]
from sklearn.naive_bayes import BernoulliNB  # type: ignore[import-untyped]

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed import (
    HELD_OUT,
    Draw,
    ExamQuestion,
    QuestionType,
    ask,
    draw_scene,
    examination,
)
from lightning_mllm.testbed.language.questions import WORDINGS
from lightning_mllm.testbed.training.exams import SAMPLINGS, Part
from tests.support.world_oracle import ATTRIBUTE_OF, judge, pairs_in

PARTS: tuple[Part, ...] = ("seen", "held_out", "presence", "blind", "text")
KINDS = {f"{type}/{wording}" for type in QuestionType for wording in range(len(WORDINGS[type]))}
FEW_ANSWERS = {  # kinds of which each answer is right equally often
    "ChooseRel": {"left", "right", "above", "below"},
    "CompareAttr": {"color", "size", "texture"},
    "LogicalObj": {"yes", "no"},
    "QueryAttr/0": {"left", "right"},
    "presence": {"yes", "no"},
}

every_part = pytest.mark.parametrize("part", PARTS)


@cache
def exam(part: Part, count: int = 24) -> tuple[ExamQuestion, ...]:
    return tuple(examination(part, count))


def by_kind(questions: Iterable[ExamQuestion]) -> dict[str, list[ExamQuestion]]:
    grouped = defaultdict(list)
    for question in questions:
        grouped[question.kind].append(question)
    return grouped


@every_part
def test_every_answer_is_what_the_scene_says(part: Part) -> None:
    for question in exam(part):
        assert question.answer == judge(question.scene, question.text).answer, question
        if question.question:
            assert (question.text, question.answer) == (
                question.question.text,
                question.question.answer,
            )


@every_part
def test_every_kind_has_as_many_questions_as_asked_for(part: Part) -> None:
    names = {*SAMPLINGS} if part == "presence" else KINDS
    for count in (24, 5):
        counts = Counter(question.kind for question in exam(part, count))
        assert counts == {f"{part}/{name}": count for name in names}


@every_part
def test_answers_are_balanced(part: Part) -> None:
    for kind, questions in by_kind(exam(part)).items():
        for answers in [found for name, found in FEW_ANSWERS.items() if name in kind]:
            counts = Counter(question.answer for question in questions)
            assert counts == {answer: len(questions) // len(answers) for answer in answers}


def test_no_scene_and_no_name_comes_twice() -> None:
    questions = [
        question
        for part in PARTS
        for split in ("train", "val", "test")
        for question in examination(part, 6, split=split)
    ]

    assert len({question.id for question in questions}) == len(questions)
    assert len({question.scene.objects for question in questions}) == len(questions)


@every_part
def test_scenes_have_two_objects_or_more(part: Part) -> None:
    assert {len(question.scene.objects) for question in exam(part)} == {2, 3, 4, 5}


@pytest.mark.parametrize("part", [part for part in PARTS if part != "held_out"])
def test_only_one_part_mentions_held_out_pairs(part: Part) -> None:
    for question in exam(part):
        mentioned = pairs_in(question.text) | judge(question.scene, question.text).mentioned
        assert not mentioned & HELD_OUT
        assert not {(thing.color, thing.shape) for thing in question.scene.objects} & HELD_OUT


def test_other_seeds_ask_about_other_scenes() -> None:
    scenes = [
        {question.scene.objects for question in examination("seen", 4, seed=seed)}
        for seed in (0, 1)
    ]

    assert not scenes[0] & scenes[1]


@pytest.mark.parametrize("part", ["seen", "held_out"])
def test_the_option_named_first_is_right_half_the_time(part: Part) -> None:
    for kind, questions in by_kind(exam(part, 240)).items():
        first = [_label(question) == "first" for question in questions if _options(question)]
        assert not first or abs(sum(first) / len(first) - 0.5) < _margin(0.5, len(first)), kind


@pytest.mark.parametrize("part", ["seen", "presence"])
def test_who_reads_only_the_question_guesses(part: Part) -> None:
    for kind, questions in by_kind(exam(part, 240)).items():
        if kind.endswith(("QueryAttr/1", "QueryAttr/2")):
            continue  # each shape has one color less
        labels = [_label(question) for question in questions]
        chance = 1 / len({*labels})
        assert _guessed(questions, labels) < chance + _margin(chance, len(questions) // 2), kind


def form(question: ExamQuestion) -> tuple[object, ...]:
    """What the two things of LogicalObj have in common, by their words alone."""
    first, second = sorted(
        tuple(word for word in _words(reference.text) if word in ATTRIBUTE_OF)
        for reference in (question.question.references if question.question else ())
    )
    sorts = sorted((ATTRIBUTE_OF[first[0]], ATTRIBUTE_OF[second[0]]))
    held_out = (first in HELD_OUT) + (second in HELD_OUT)
    return *sorts, first[0] == second[0], first[1] == second[1], held_out


@pytest.mark.parametrize("part", ["seen", "held_out"])
def test_what_two_things_have_in_common_by_their_words_says_nothing(part: Part) -> None:
    counts: dict[tuple[object, ...], list[bool]] = defaultdict(list)
    scenes = (draw_scene(f"form/{number}", objects=(2, 5), pairs=part) for number in range(3000))  # type: ignore[arg-type]
    for number, scene in enumerate(scenes):
        question = ask(QuestionType.LOGICAL_OBJ, scene, Draw("form", number), part)  # type: ignore[arg-type]
        if question is not None:
            asked = ExamQuestion(
                id="", kind="", scene=scene, text="", answer=question.answer, question=question
            )
            counts[question.wording == 2, *form(asked)].append(question.answer == "yes")

    assert sum(map(len, counts.values())) > 1000
    for features, answers in counts.items():
        assert abs(sum(answers) / len(answers) - 0.5) < _margin(0.5, len(answers)), features


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no part 'heldout'"):
        next(examination("heldout", 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["seen", "presence"])
def test_an_examination_without_questions_is_refused(part: Part) -> None:
    with pytest.raises(ConfigError, match=r"0 questions of each kind\. Ask for 1 or more"):
        next(examination(part, 0))


def _options(question: ExamQuestion) -> tuple[str, ...]:
    return judge(question.scene, question.text).options


def _label(question: ExamQuestion) -> str:
    options = _options(question)
    if not options:
        return question.answer
    return "first" if options[0] == question.answer else "second"


def _words(text: str) -> list[str]:
    return re.sub(
        r"(?<=[a-rt-z])s\b|(?<=cross)es\b", "", re.sub("[^a-z ]", "", text.lower())
    ).split()


def _features(text: str) -> dict[str, int]:
    values = [word for word in _words(text) if word in ATTRIBUTE_OF]
    return {
        **Counter(_words(text)),
        **{f"{place} {word}": 1 for place, word in enumerate(values)},
        **{f"{place} {ATTRIBUTE_OF[word]}": 1 for place, word in enumerate(values)},
    }


def _guessed(questions: Sequence[ExamQuestion], labels: Sequence[str]) -> float:
    """Accuracy on the second half of naive Bayes on words and places, fitted to the first half."""
    features: Any = DictVectorizer().fit_transform(
        [_features(question.text) for question in questions]
    )
    half = len(questions) // 2
    model: Any = BernoulliNB().fit(features[:half], labels[:half])
    return float(model.score(features[half:], labels[half:]))


def _margin(chance: float, count: int) -> float:
    """Four standard deviations of a share."""
    return 4 * math.sqrt(chance * (1 - chance) / count)
