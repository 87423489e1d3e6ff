"""Pairs of questions that differ in one thing, so that it is known what a patch has to carry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.language.candidates import choose_wrong_candidate
from lightning_mllm.testbed.language.questions import Question, QuestionType
from lightning_mllm.testbed.language.references import Reference, make_reference
from lightning_mllm.testbed.training.exams import ExamQuestion, examination
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import (
    ATTRIBUTES,
    HELD_OUT,
    Attribute,
    Scene,
    SceneObject,
)

Swap = Literal["attribute", "words"]
SWAPS: tuple[Swap, ...] = get_args(Swap)

# a swapped size would change the object's box
_SWAPPED: tuple[Attribute, ...] = ("color", "texture", "shape")
_TYPES: dict[Swap, tuple[QuestionType, ...]] = {
    "attribute": (QuestionType.CHOOSE_ATTR, QuestionType.CHOOSE_CAT, QuestionType.QUERY_ATTR),
    "words": (QuestionType.QUERY_ATTR,),
}
_TRIES = 8  # names that are drawn for an object


@dataclass(frozen=True)
class QuestionPair:
    """Two questions that differ in one thing, and have different answers.

    Attributes:
        clean: The question as the examination has it.
        corrupted: The other: its id is the first one's with "/swapped" behind it.
        attribute: The attribute that is asked for.
    """

    clean: ExamQuestion
    corrupted: ExamQuestion
    attribute: Attribute


def make_question_pairs(
    swap: Swap, count: int, *, seed: int = 0, split: str = "test"
) -> Iterator[QuestionPair]:
    """Yield pairs made of the questions of an examination's part "seen".

    Args:
        swap: What differs. "attribute": the colour, texture or shape that is asked for, of the
            object that the question is about; ground, noise, boxes and all other objects are equal,
            so that pixels differ in its box only. "words": which object of the picture is asked
            about, in as many words.
        count: Number of questions per kind, some of which can't be made a pair.
        seed: Seed of the scenes.
        split: Name of the split.

    Raises:
        ConfigError: There is no such swap, or `count` is less than 1.
    """
    if swap not in SWAPS:
        raise ConfigError(f"swap is {swap!r}; it can be {' or '.join(map(repr, SWAPS))}.")
    make = _swap_attribute if swap == "attribute" else _swap_words
    for question in examination("seen", count, seed=seed, split=split):
        asked = question.question
        if asked is not None and asked.type in _TYPES[swap]:
            pair = make(question, asked)
            if pair is not None:
                yield pair


def _find_attribute(answer: str) -> Attribute | None:
    """Return the attribute of which an answer is a value; None if it is no swapped one's."""
    return next((name for name in _SWAPPED if answer in ATTRIBUTES[name]), None)


def _swap_attribute(question: ExamQuestion, asked: Question) -> QuestionPair | None:
    """Return a pair whose pictures differ in what is asked for."""
    attribute, (reference,) = _find_attribute(question.answer), asked.references
    thing = reference.thing
    if attribute is None or thing is None:
        return None
    draw = Draw("pair", question.id)
    wrong = asked.other_option or choose_wrong_candidate(
        question.scene, thing, attribute, draw, "seen"
    )
    swapped = _with_value(thing, attribute, wrong)
    if (swapped.color, swapped.shape) in HELD_OUT:
        return None
    # of the same id, so that ground, noise and the deviation of colours are the same
    scene = Scene(question.scene.id, _exchange(question.scene, thing, swapped))
    other = replace(
        asked,
        answer=wrong,
        other_option=question.answer if asked.other_option else "",
        references=(Reference(swapped, reference.text),),
    )
    corrupted = replace(question, id=_name(question), scene=scene, answer=wrong, question=other)
    return QuestionPair(question, corrupted, attribute)


def _swap_words(question: ExamQuestion, asked: Question) -> QuestionPair | None:
    """Return a pair that asks about two objects of one picture in as many words."""
    attribute, (reference,) = _find_attribute(question.answer), asked.references
    if attribute is None or reference.thing is None:
        return None
    draw = Draw("pair", question.id)
    for thing in draw.shuffled(question.scene.objects):
        answer = thing.value(attribute)
        if answer == question.answer:
            continue
        for _ in range(_TRIES):
            other = make_reference(question.scene, thing, draw, hidden=[attribute])
            if other is None or len(other.text.split()) != len(reference.text.split()):
                continue
            text = question.text.replace(f"the {reference.text}?", f"the {other.text}?")
            if text == question.text:  # which names its object in another way
                continue
            swapped = replace(asked, text=text, answer=answer, references=(other,))
            corrupted = replace(
                question, id=_name(question), text=text, answer=answer, question=swapped
            )
            return QuestionPair(question, corrupted, attribute)
    return None


def _name(question: ExamQuestion) -> str:
    return f"{question.id}/swapped"


def _with_value(thing: SceneObject, attribute: Attribute, value: str) -> SceneObject:
    changes: dict[str, str] = {attribute: value}
    return replace(thing, **changes)  # type: ignore[arg-type]  # one of its texts


def _exchange(scene: Scene, old: SceneObject, new: SceneObject) -> tuple[SceneObject, ...]:
    return tuple(new if each is old else each for each in scene.objects)
