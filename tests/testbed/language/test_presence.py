from typing import get_args

import pytest

from lightning_mllm.testbed import HELD_OUT, Draw, PresenceQuestion, Scene, ask_presence
from lightning_mllm.testbed.language.presence import Pair, Sampling
from lightning_mllm.testbed.world.scenes import COLORS, SHAPES
from tests.support.world_oracle import judge, pairs_in
from tests.support.worlds import scenes

POPULAR: tuple[Pair, ...] = tuple(
    (color, shape) for color in COLORS for shape in ("circle", "square", "moon")
)

every_sampling = pytest.mark.parametrize("sampling", get_args(Sampling))


def asked(
    sampling: Sampling, present: bool, count: int = 150
) -> list[tuple[Scene, PresenceQuestion]]:
    found = []
    for scene in scenes(count):
        draw = Draw("presence", scene.id)
        question = ask_presence(scene, draw, sampling=sampling, present=present, popular=POPULAR)
        if question is not None:
            found.append((scene, question))
    assert len(found) > count // 3
    return found


def pairs_of(scene: Scene) -> set[Pair]:
    return {(thing.color, thing.shape) for thing in scene.objects}


@every_sampling
@pytest.mark.parametrize("present", [True, False])
def test_the_answer_is_what_the_scene_says(sampling: Sampling, present: bool) -> None:
    for scene, question in asked(sampling, present):
        assert question.answer == judge(scene, question.text).answer == ("yes" if present else "no")
        assert pairs_in(question.text) == {question.pair}
        assert question.sampling == sampling


@every_sampling
def test_no_held_out_pair_is_asked_for(sampling: Sampling) -> None:
    for present in (True, False):
        assert not {question.pair for _, question in asked(sampling, present)} & HELD_OUT


def test_held_out_pairs_are_asked_for_on_demand() -> None:
    found = [
        ask_presence(scene, Draw(scene.id), sampling="random", present=False, pairs="all")
        for scene in scenes(200)
    ]

    assert {question.pair for question in found if question} & HELD_OUT


def test_random_pairs_are_any() -> None:
    found = {question.pair for _, question in asked("random", False, 600)}

    assert found == {(color, shape) for color in COLORS for shape in SHAPES} - HELD_OUT


def test_popular_pairs_are_those_given() -> None:
    for present in (True, False):
        assert {question.pair for _, question in asked("popular", present, 600)} == {
            *POPULAR
        } - HELD_OUT


def test_adversarial_pairs_are_made_of_what_is_there() -> None:
    for scene, question in asked("adversarial", False):
        color, shape = question.pair
        assert color in {thing.color for thing in scene.objects}
        assert shape in {thing.shape for thing in scene.objects}
        assert question.pair not in pairs_of(scene)


@every_sampling
def test_a_scene_serves_both_answers_or_none(sampling: Sampling) -> None:
    both = [{scene.id for scene, _ in asked(sampling, present)} for present in (True, False)]

    assert both[0] == both[1]


def test_one_object_has_no_adversarial_pair() -> None:
    for scene in scenes(20, objects=(1, 1)):
        assert ask_presence(scene, Draw("one"), sampling="adversarial", present=False) is None


def test_the_article_fits() -> None:
    texts = {question.text for _, question in asked("random", False, 600)}

    assert all(text.startswith("Is there an orange ") == (" orange " in text) for text in texts)
