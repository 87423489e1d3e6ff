import re

import pytest

from lightning_mllm.testbed import HELD_OUT, Draw, Question, QuestionType, Scene, ask
from lightning_mllm.testbed.language.questions import WORDINGS
from lightning_mllm.testbed.world.scenes import Pairs
from tests.support.world_oracle import COLOR, SHAPE, SHORT, VALUES, judge, pairs_in
from tests.support.worlds import questions, scenes

TWO_OPTIONS = {QuestionType.CHOOSE_ATTR, QuestionType.CHOOSE_CAT, QuestionType.CHOOSE_REL}

every_world = pytest.mark.parametrize("pairs", ["seen", "held_out", "all"])


def ids(question: Question) -> set[str]:
    return {reference.thing.id for reference in question.references if reference.thing}


@every_world
def test_the_answer_is_what_the_scene_says(pairs: Pairs) -> None:
    kinds = set()
    for scene, question in questions(30, pairs):
        assert question.answer == judge(scene, question.text).answer, question
        kinds.add(question.kind)

    assert kinds == {
        f"{type}/{wording}" for type in QuestionType for wording in range(len(WORDINGS[type]))
    }


@every_world
def test_of_two_options_one_is_right_and_one_is_wrong(pairs: Pairs) -> None:
    for scene, question in questions(30, pairs):
        options = judge(scene, question.text).options  # exactly one of which is right
        if question.type in TWO_OPTIONS:
            assert {*options} == {question.answer, question.other_option}
            assert len(options) == 2
        else:
            assert (options, question.other_option) == ((), "")


@every_world
def test_references_are_the_objects_that_the_text_names(pairs: Pairs) -> None:
    for scene, question in questions(30, pairs):
        things = judge(scene, question.text).things
        if question.type is QuestionType.CHOOSE_REL:
            thing, anchor = things
            assert [reference.thing for reference in question.references] == [anchor, thing]
        elif question.type is QuestionType.LOGICAL_OBJ:
            assert ids(question) <= {thing.id for thing in things}
            for reference in question.references:
                color_or_texture, shape = reference.text.split()
                assert (reference.thing is None) == (
                    not any(
                        each.shape == shape and color_or_texture in (each.color, each.texture)
                        for each in things
                    )
                )
        else:
            assert [reference.thing for reference in question.references] == [*things]


@every_world
def test_steps_build_on_earlier_ones_and_end_in_the_answer(pairs: Pairs) -> None:
    for _, question in questions(10, pairs):
        for number, (_, needed, _) in enumerate(question.operations):
            assert all(step < number for step in needed)
        name, _, argument = question.operations[-1]
        assert name.split()[0] in {"choose", "common", "and", "or", "query"}
        if question.type in TWO_OPTIONS:
            sides = argument.split(",")[1] if question.type is QuestionType.CHOOSE_REL else argument
            found = [SHORT.get(side, side) for side in sides.split("|")]
            assert found == [question.answer, question.other_option]


def test_seen_questions_mention_no_held_out_pair() -> None:
    for scene, question in questions(60):
        assert not (pairs_in(question.text) | judge(scene, question.text).mentioned) & HELD_OUT, (
            question.text
        )


def is_about_held_out(scene: Scene, question: Question) -> bool:
    return any(
        (thing.color, thing.shape) in HELD_OUT for thing in judge(scene, question.text).things
    )


def test_held_out_questions_are_about_a_held_out_pair() -> None:
    for scene, question in questions(60, "held_out"):
        if question.type is not QuestionType.LOGICAL_OBJ or question.answer == "yes":
            assert is_about_held_out(scene, question), question.text


def test_held_out_questions_with_the_answer_no_are_about_a_held_out_pair() -> None:
    for scene, question in questions(60, "held_out"):
        if question.type is QuestionType.LOGICAL_OBJ and question.answer == "no":
            assert (
                is_about_held_out(scene, question) or pairs_in(singular(question.text)) & HELD_OUT
            ), question.text


def test_a_wrong_attribute_is_that_of_another_object_if_one_has_another() -> None:
    for scene, question in questions(60, "all"):
        if question.type not in (QuestionType.CHOOSE_ATTR, QuestionType.CHOOSE_CAT):
            continue
        (attribute,) = [name for name, values in VALUES.items() if question.answer in values]
        others = {getattr(thing, attribute) for thing in scene.objects} - {question.answer}
        assert question.other_option in (others or VALUES[attribute])


def test_what_is_absent_is_made_of_what_is_there() -> None:
    for scene, question in questions(60, "all"):
        if question.type is QuestionType.LOGICAL_OBJ:
            words = {
                word
                for thing in scene.objects
                for word in (thing.color, thing.texture, thing.shape)
            }
            assert all({*reference.text.split()} & words for reference in question.references)


def test_words_bend_to_number_and_sound() -> None:
    for _, question in questions(60, "all"):
        text = question.text
        if text.startswith("Are there any"):
            assert re.fullmatch(
                rf"Are there any \w+ {PLURAL} or \w+ {PLURAL} in the picture\?", text
            )
        else:
            assert singular(text) == text
        assert all(
            (sound in "aeiou") == (n == "n") for n, sound in re.findall(r"\ba(n?) (.)", text)
        )
        assert re.fullmatch(r"[A-Z][a-z ,]+\?", text)
        assert re.fullmatch("[a-z]+", question.answer)


PLURAL = (
    rf"(?:{'|'.join(shape + ('es' if shape.endswith('s') else 's') for shape in VALUES['shape'])})"
)


def singular(text: str) -> str:
    return re.sub(rf"\b({SHAPE})(es|s)\b", r"\1", text)


@pytest.mark.parametrize("type", [QuestionType.CHOOSE_REL, QuestionType.COMPARE_ATTR])
def test_one_object_is_not_compared(type: QuestionType) -> None:
    for scene in scenes(20, objects=(1, 1)):
        assert ask(type, scene, Draw("one", scene.id)) is None


@pytest.mark.parametrize("type", QuestionType)
def test_without_a_choice_any_wording_comes(type: QuestionType) -> None:
    found = [ask(type, scene, Draw("any", scene.id)) for scene in scenes(100)]

    assert {question.wording for question in found if question} == {*range(len(WORDINGS[type]))}


def test_the_same_stream_asks_the_same() -> None:
    for scene in scenes(20):
        for type in QuestionType:
            assert ask(type, scene, Draw("same")) == ask(type, scene, Draw("same"))


def test_the_patterns_of_this_test_find_pairs() -> None:
    assert pairs_in("Is there a small red striped circle?") == {("red", "circle")}
    assert pairs_in("circle 3 4 solid red small, blue 1 2 star") == {
        ("red", "circle"),
        ("blue", "star"),
    }
    assert pairs_in("the red object, a circle or a star") == set()
    assert set(COLOR.split("|")) == {color for color, _ in HELD_OUT}
