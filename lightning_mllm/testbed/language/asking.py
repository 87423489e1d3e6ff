"""Asks questions of the six types about a scene, with exact answers.

Nothing in a question tells its answer. The wrong option is an attribute of another object of the
scene where possible, and absent things have the attributes of things that are there.
"""

from __future__ import annotations

from collections.abc import Callable

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.language.candidates import (
    choose_candidate_object,
    choose_candidate_pair,
    choose_wrong_candidate,
    find_candidate_side,
    group_candidate_pairs,
    list_candidate_subjects,
)
from lightning_mllm.testbed.language.questions import (
    CHOOSE_ATTR,
    CHOOSE_CAT,
    CHOOSE_REL,
    COMPARE_ATTR,
    LOGICAL_OBJ,
    QUERY_ATTR,
    WORDINGS,
    Question,
    QuestionType,
)
from lightning_mllm.testbed.language.references import (
    Reference,
    add_article_to_reference,
    make_reference,
)
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import (
    Attribute,
    Pairs,
    Scene,
    SceneObject,
    scene_relations,
)

_BOTH = 2  # index of the wording of LOGICAL_OBJ that asks for both things
_SIDES = {"left": ("to the left of", "to the right of"), "above": ("above", "below")}
_SHORT = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
_TRIES = 8  # attempts to ask about a scene


def ask(
    type: QuestionType,
    scene: Scene,
    draw: Draw,
    pairs: Pairs = "seen",
    wording: int | None = None,
) -> Question | None:
    """Ask a question of a type about a scene.

    Args:
        type: Type of the question.
        scene: Scene that the question is about.
        draw: Random choices of objects, wording and options.
        pairs: With "seen", no pair of colour and shape in `HELD_OUT` is mentioned, not even as a
            wrong option. With "held_out", the question is about an object with such a pair.
        wording: Index of the wording; by default a random one.

    Returns:
        The question; None if the scene has nothing that this type can ask about.

    Raises:
        ConfigError: There is no such wording.
    """
    makers: dict[QuestionType, _Maker] = {
        QuestionType.CHOOSE_ATTR: _choose_attribute,
        QuestionType.CHOOSE_CAT: _choose_category,
        QuestionType.CHOOSE_REL: _choose_relation,
        QuestionType.COMPARE_ATTR: _compare_attributes,
        QuestionType.LOGICAL_OBJ: _combine_objects,
        QuestionType.QUERY_ATTR: _query_attribute,
    }
    count = len(WORDINGS[type])
    if wording is not None and not 0 <= wording < count:
        raise ConfigError(f"{type} has no wording {wording}; there are 0 to {count - 1}.")
    for _ in range(_TRIES):
        chosen = draw.below(count) if wording is None else wording
        question = makers[type](scene, draw, pairs, chosen)
        if question is not None:
            return question
    return None


_Maker = Callable[[Scene, Draw, Pairs, int], Question | None]


def _choose_attribute(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    attribute: Attribute = draw.one(("color", "size", "texture"))
    thing = choose_candidate_object(scene, attribute, draw, pairs)
    if thing is None:
        return None
    reference = make_reference(scene, thing, draw, hidden=[attribute])
    if reference is None:
        return None
    answer = thing.value(attribute)
    wrong = choose_wrong_candidate(scene, thing, attribute, draw, pairs)
    options = _join_options([answer, wrong], draw)
    return Question(
        type=QuestionType.CHOOSE_ATTR,
        wording=wording,
        detailed="chooseAttr",
        text=CHOOSE_ATTR[wording].format(
            thing=reference.text, attribute=attribute, options=options
        ),
        answer=answer,
        other_option=wrong,
        references=(reference,),
        operations=(
            _select_object(reference),
            (f"choose {attribute}", (0,), f"{answer}|{wrong}"),
        ),
    )


def _choose_category(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    thing = choose_candidate_object(scene, "shape", draw, pairs)
    if thing is None:
        return None
    reference = make_reference(scene, thing, draw, hidden=["shape"])
    if reference is None:
        return None
    answer = thing.shape
    wrong = choose_wrong_candidate(scene, thing, "shape", draw, pairs)
    options = _join_options([f"a {answer}", f"a {wrong}"], draw)
    return Question(
        type=QuestionType.CHOOSE_CAT,
        wording=wording,
        detailed=("objThisChoose", "objThisChoose", "categoryThatChoose")[wording],
        text=CHOOSE_CAT[wording].format(thing=reference.text, options=options),
        answer=answer,
        other_option=wrong,
        references=(reference,),
        operations=(_select_object(reference), ("choose name", (0,), f"{answer}|{wrong}")),
    )


def _choose_relation(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    axis = _SIDES[draw.one(list(_SIDES))]
    relation = draw.one(axis)

    def is_related(thing: SceneObject, anchor: SceneObject) -> bool:
        return relation in scene_relations(thing, anchor)

    pair = choose_candidate_pair(scene, draw, pairs, is_related)
    if pair is None:
        return None
    thing, anchor = pair
    options = " or ".join(draw.shuffled(axis))
    (wrong,) = set(axis) - {relation}
    return Question(
        type=QuestionType.CHOOSE_REL,
        wording=wording,
        detailed="relChooser",
        text=CHOOSE_REL[wording].format(thing=thing.text, anchor=anchor.text, options=options),
        answer=_SHORT[relation],
        other_option=_SHORT[wrong],
        references=(anchor, thing),
        operations=(
            _select_object(anchor),
            ("choose rel", (0,), f"{thing.text},{relation}|{wrong},s ({_id_of(thing)})"),
        ),
    )


def _compare_attributes(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    compared: tuple[Attribute, ...] = ("color", "size", "texture")
    answer = draw.one(compared)

    def shares_only_that(thing: SceneObject, other: SceneObject) -> bool:
        return [name for name in compared if thing.value(name) == other.value(name)] == [answer]

    pair = choose_candidate_pair(scene, draw, pairs, shares_only_that, hidden=compared)
    if pair is None:
        return None
    thing, other = pair
    return Question(
        type=QuestionType.COMPARE_ATTR,
        wording=wording,
        detailed="twoCommon",
        text=COMPARE_ATTR[wording].format(thing=thing.text, other=other.text),
        answer=answer,
        references=pair,
        operations=(_select_object(thing), _select_object(other), ("common", (0, 1), "")),
    )


def _combine_objects(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    both, holds = wording == _BOTH, draw.happens(0.5)
    fitting = group_candidate_pairs(scene, pairs, both)
    forms = [form for form in fitting[True] if form in fitting[False]]
    if not forms:  # the words alone would tell the answer
        return None
    named = draw.shuffled(draw.one(fitting[holds][draw.one(forms)]))
    steps: list[tuple[str, tuple[int, ...], str]] = []
    for start, reference in zip((0, 3), named, strict=True):
        modifier, noun = reference.text.split()
        steps.append(("select", (), f"{noun} ({_id_of(reference)})"))
        steps += [("filter", (start,), modifier), ("exist", (start + 1,), "?")]
    steps.append(("and" if both else "or", (2, 5), ""))
    words = [
        _pluralise(each.text) if wording == 1 else add_article_to_reference(each.text)
        for each in named
    ]
    return Question(
        type=QuestionType.LOGICAL_OBJ,
        wording=wording,
        detailed="existThatAnd" if both else "existThatOr",
        text=LOGICAL_OBJ[wording].format(thing=words[0], other=words[1]),
        answer="yes" if holds else "no",
        references=(named[0], named[1]),
        operations=tuple(steps),
    )


def _query_attribute(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    attribute: Attribute = draw.one(("color", "texture"))
    side = draw.one(("left", "right"))
    if wording == 0:
        fitting = [
            each
            for each in list_candidate_subjects(scene, pairs)
            if find_candidate_side(each) == side
        ]
        thing = draw.one(fitting) if fitting else None
    else:
        thing = choose_candidate_object(scene, attribute, draw, pairs)
    if thing is None:
        return None
    reference = make_reference(scene, thing, draw, hidden=[attribute] if wording else [])
    if reference is None:
        return None
    return Question(
        type=QuestionType.QUERY_ATTR,
        wording=wording,
        detailed=("positionQuery", "directWhich", "directOf")[wording],
        text=QUERY_ATTR[wording].format(thing=reference.text, attribute=attribute),
        answer=thing.value(attribute) if wording else side,
        references=(reference,),
        operations=(
            _select_object(reference),
            ("query", (0,), attribute if wording else "hposition"),
        ),
    )


def _pluralise(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _join_options(options: list[str], draw: Draw) -> str:
    return " or ".join(draw.shuffled(options))


def _select_object(reference: Reference) -> tuple[str, tuple[int, ...], str]:
    """Return GQA's step that finds an object."""
    return "select", (), f"{reference.text} ({_id_of(reference)})"


def _id_of(reference: Reference) -> str:
    return reference.thing.id if reference.thing else "-"
