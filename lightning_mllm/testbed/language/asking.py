"""Asks questions of the six types about a scene, with exact answers.

Nothing in a question tells its answer: the wrong option is, where it can be, an attribute of another object of the
scene, and what is said not to be there is made of what is.
"""

from __future__ import annotations

from collections.abc import Callable

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.language.candidates import (
    fitting_pair,
    named_pairs,
    of_any_value,
    side_of,
    subjects,
    wrong_value,
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
from lightning_mllm.testbed.language.references import Reference, article, refer
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import (
    Attribute,
    Pairs,
    Scene,
    SceneObject,
    relations,
)

_BOTH = 2  # the wording of LOGICAL_OBJ that asks for both
_SIDES = {"left": ("to the left of", "to the right of"), "above": ("above", "below")}
_SHORT = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
_TRIES = 8


def ask(
    type: QuestionType, scene: Scene, draw: Draw, pairs: Pairs = "seen", wording: int | None = None
) -> Question | None:
    """Ask a question of a type about a scene.

    Args:
        type: The task.
        scene: What it is about.
        draw: Chooses objects, wording and options.
        pairs: With "seen", no pair of colour and shape in `HELD_OUT` is mentioned, even as a wrong option; with
            "held_out", the question is about an object of such a pair.
        wording: Which wording; by default any.

    Returns:
        The question; None if the scene has nothing to ask it about.

    Raises:
        ConfigError: There is no such wording.
    """
    makers: dict[QuestionType, _Maker] = {
        QuestionType.CHOOSE_ATTR: _choose_attribute,
        QuestionType.CHOOSE_CAT: _choose_category,
        QuestionType.CHOOSE_REL: _choose_relation,
        QuestionType.COMPARE_ATTR: _compare_attributes,
        QuestionType.LOGICAL_OBJ: _logical,
        QuestionType.QUERY_ATTR: _query_attribute,
    }
    if wording is not None and not 0 <= wording < len(WORDINGS[type]):
        raise ConfigError(f"{type} has no wording {wording}; there are 0 to {len(WORDINGS[type]) - 1}.")
    for _ in range(_TRIES):
        chosen = draw.below(len(WORDINGS[type])) if wording is None else wording
        question = makers[type](scene, draw, pairs, chosen)
        if question is not None:
            return question
    return None


_Maker = Callable[[Scene, Draw, Pairs, int], Question | None]


def _choose_attribute(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    attribute: Attribute = draw.one(("color", "size", "texture"))
    thing = of_any_value(scene, attribute, draw, pairs)
    if thing is None:
        return None
    reference = refer(scene, thing, draw, hidden=[attribute])
    if reference is None:
        return None
    answer, wrong = thing.value(attribute), wrong_value(scene, thing, attribute, draw, pairs)
    options = _either([answer, wrong], draw)
    return Question(
        type=QuestionType.CHOOSE_ATTR,
        wording=wording,
        detailed="chooseAttr",
        text=CHOOSE_ATTR[wording].format(thing=reference.text, attribute=attribute, options=options),
        answer=answer,
        other_option=wrong,
        references=(reference,),
        operations=(_select(reference), (f"choose {attribute}", (0,), f"{answer}|{wrong}")),
    )


def _choose_category(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    thing = of_any_value(scene, "shape", draw, pairs)
    if thing is None:
        return None
    reference = refer(scene, thing, draw, hidden=["shape"])
    if reference is None:
        return None
    answer, wrong = thing.shape, wrong_value(scene, thing, "shape", draw, pairs)
    options = _either([f"a {answer}", f"a {wrong}"], draw)
    return Question(
        type=QuestionType.CHOOSE_CAT,
        wording=wording,
        detailed=("objThisChoose", "objThisChoose", "categoryThatChoose")[wording],
        text=CHOOSE_CAT[wording].format(thing=reference.text, options=options),
        answer=answer,
        other_option=wrong,
        references=(reference,),
        operations=(_select(reference), ("choose name", (0,), f"{answer}|{wrong}")),
    )


def _choose_relation(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    axis = _SIDES[draw.one(list(_SIDES))]
    relation = draw.one(axis)
    pair = fitting_pair(scene, draw, pairs, lambda thing, anchor: relation in relations(thing, anchor))
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
            _select(anchor),
            ("choose rel", (0,), f"{thing.text},{relation}|{wrong},s ({_id(thing)})"),
        ),
    )


def _compare_attributes(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    compared: tuple[Attribute, ...] = ("color", "size", "texture")
    answer = draw.one(compared)

    def shares_only_that(thing: SceneObject, other: SceneObject) -> bool:
        return [name for name in compared if thing.value(name) == other.value(name)] == [answer]

    pair = fitting_pair(scene, draw, pairs, shares_only_that, hidden=compared)
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
        operations=(_select(thing), _select(other), ("common", (0, 1), "")),
    )


def _logical(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    both, holds = wording == _BOTH, draw.happens(0.5)
    fitting = named_pairs(scene, pairs, both)
    forms = [form for form in fitting[True] if form in fitting[False]]
    if not forms:  # the words alone would tell the answer
        return None
    named = draw.shuffled(draw.one(fitting[holds][draw.one(forms)]))
    steps: list[tuple[str, tuple[int, ...], str]] = []
    for start, reference in zip((0, 3), named, strict=True):
        modifier, noun = reference.text.split()
        steps.append(("select", (), f"{noun} ({_id(reference)})"))
        steps += [("filter", (start,), modifier), ("exist", (start + 1,), "?")]
    steps.append(("and" if both else "or", (2, 5), ""))
    words = [_plural(each.text) if wording == 1 else article(each.text) for each in named]
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
        fitting = [each for each in subjects(scene, pairs) if side_of(each) == side]
        thing = draw.one(fitting) if fitting else None
    else:
        thing = of_any_value(scene, attribute, draw, pairs)
    if thing is None:
        return None
    reference = refer(scene, thing, draw, hidden=[attribute] if wording else [])
    if reference is None:
        return None
    return Question(
        type=QuestionType.QUERY_ATTR,
        wording=wording,
        detailed=("positionQuery", "directWhich", "directOf")[wording],
        text=QUERY_ATTR[wording].format(thing=reference.text, attribute=attribute),
        answer=thing.value(attribute) if wording else side,
        references=(reference,),
        operations=(_select(reference), ("query", (0,), attribute if wording else "hposition")),
    )


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _either(options: list[str], draw: Draw) -> str:
    return " or ".join(draw.shuffled(options))


def _select(reference: Reference) -> tuple[str, tuple[int, ...], str]:
    return "select", (), f"{reference.text} ({_id(reference)})"


def _id(reference: Reference) -> str:
    return reference.thing.id if reference.thing else "-"
