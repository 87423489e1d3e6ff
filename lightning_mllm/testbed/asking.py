"""Asks questions of the six types about a scene, with exact answers.

Nothing in a question tells its answer: the wrong option is, where it can be, an attribute of another object of the
scene, and what is said not to be there is made of what is.
"""

from __future__ import annotations

from collections.abc import Callable

from lightning_mllm.testbed.draws import Draw
from lightning_mllm.testbed.questions import (
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
from lightning_mllm.testbed.references import Reference, article, refer
from lightning_mllm.testbed.scenes import (
    ATTRIBUTES,
    HELD_OUT,
    SHAPES,
    SIDE,
    Attribute,
    Pairs,
    Scene,
    SceneObject,
    relations,
)

_BOTH = 2  # the wording of LOGICAL_OBJ that asks for both
_SIDES = {"left": ("to the left of", "to the right of"), "above": ("above", "below")}
_SHORT = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
_MIDDLE = 4  # pixels around the middle, in which an object is on neither side
_TRIES = 8
_MODIFIERS: tuple[Attribute, ...] = ("color", "texture")


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
    """
    makers: dict[QuestionType, _Maker] = {
        QuestionType.CHOOSE_ATTR: _choose_attribute,
        QuestionType.CHOOSE_CAT: _choose_category,
        QuestionType.CHOOSE_REL: _choose_relation,
        QuestionType.COMPARE_ATTR: _compare_attributes,
        QuestionType.LOGICAL_OBJ: _logical,
        QuestionType.QUERY_ATTR: _query_attribute,
    }
    for _ in range(_TRIES):
        chosen = draw.below(len(WORDINGS[type])) if wording is None else wording
        question = makers[type](scene, draw, pairs, chosen)
        if question is not None:
            return question
    return None


_Maker = Callable[[Scene, Draw, Pairs, int], Question | None]


def _choose_attribute(scene: Scene, draw: Draw, pairs: Pairs, wording: int) -> Question | None:
    thing = _subject(scene, draw, pairs)
    attribute: Attribute = draw.one(("color", "size", "texture"))
    reference = refer(scene, thing, draw, hidden=[attribute])
    if reference is None:
        return None
    answer, wrong = thing.value(attribute), _wrong(scene, thing, attribute, draw, pairs)
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
    thing = _subject(scene, draw, pairs)
    reference = refer(scene, thing, draw, hidden=["shape"])
    if reference is None:
        return None
    answer, wrong = thing.shape, _wrong(scene, thing, "shape", draw, pairs)
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
    pair = _pair(scene, draw, pairs, lambda thing, anchor: relation in relations(thing, anchor))
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

    pair = _pair(scene, draw, pairs, shares_only_that, hidden=compared)
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
    present = _present(draw.one(_subjects(scene, pairs)), draw)
    if both and holds:
        others = [_present(other, draw) for other in scene.objects if other is not present.thing]
        second = draw.one(others) if others else None
    else:
        second = _absent(scene, draw, pairs)
    first = present if both or holds else _absent(scene, draw, pairs)
    if first is None or second is None or first.text == second.text:
        return None
    named = draw.shuffled([first, second])
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
    thing = _subject(scene, draw, pairs)
    if wording == 0:
        side = draw.one(("left", "right"))
        fitting = [each for each in _subjects(scene, pairs) if _side(each) == side]
        if not fitting:
            return None
        thing = draw.one(fitting)
    attribute: Attribute = draw.one(("color", "texture"))
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


def _subjects(scene: Scene, pairs: Pairs) -> list[SceneObject]:
    """Return the objects that a question can be about."""
    if pairs != "held_out":
        return list(scene.objects)
    return [thing for thing in scene.objects if (thing.color, thing.shape) in HELD_OUT]


def _subject(scene: Scene, draw: Draw, pairs: Pairs) -> SceneObject:
    return draw.one(_subjects(scene, pairs))


def _pair(
    scene: Scene,
    draw: Draw,
    pairs: Pairs,
    fits: Callable[[SceneObject, SceneObject], bool],
    hidden: tuple[Attribute, ...] = (),
) -> tuple[Reference, Reference] | None:
    """Return two objects of which the first is a subject, and which fit together."""
    candidates = [
        (thing, other)
        for thing in _subjects(scene, pairs)
        for other in scene.objects
        if other is not thing and fits(thing, other)
    ]
    for thing, other in draw.shuffled(candidates):
        first, second = refer(scene, thing, draw, hidden=hidden), refer(scene, other, draw, hidden=hidden)
        if first and second:
            return first, second
    return None


def _wrong(scene: Scene, thing: SceneObject, attribute: Attribute, draw: Draw, pairs: Pairs) -> str:
    """Return a value that an object does not have: of another object of the scene, if it can be."""
    values = [value for value in ATTRIBUTES[attribute] if value != thing.value(attribute)]
    if attribute in ("color", "shape") and pairs == "seen":
        values = [
            value
            for value in values
            if ((value, thing.shape) if attribute == "color" else (thing.color, value)) not in HELD_OUT
        ]
    near = [value for value in values if any(other.value(attribute) == value for other in scene.objects)]
    return draw.one(near or values)


def _present(thing: SceneObject, draw: Draw) -> Reference:
    return Reference(thing, f"{thing.value(draw.one(_MODIFIERS))} {thing.shape}")


def _absent(scene: Scene, draw: Draw, pairs: Pairs) -> Reference | None:
    """Return words for what is not there, made of what is: an object's shape with another one's colour or texture."""
    modifier = draw.one(_MODIFIERS)
    there = {(thing.value(modifier), thing.shape) for thing in scene.objects}
    if modifier == "color" and pairs == "seen":
        there |= HELD_OUT
    values, shapes = ({thing.value(name): None for thing in scene.objects} for name in (modifier, "shape"))
    near = [(value, shape) for value in values for shape in shapes if (value, shape) not in there]
    far = [(value, shape) for value in values for shape in SHAPES if (value, shape) not in there]
    far += [(value, shape) for value in ATTRIBUTES[modifier] for shape in shapes if (value, shape) not in there]
    if not far:
        return None
    return Reference(None, " ".join(draw.one(near or far)))


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _side(thing: SceneObject) -> str | None:
    offset = thing.x - SIDE // 2
    return None if abs(offset) < _MIDDLE else "left" if offset < 0 else "right"


def _either(options: list[str], draw: Draw) -> str:
    return " or ".join(draw.shuffled(options))


def _select(reference: Reference) -> tuple[str, tuple[int, ...], str]:
    return "select", (), f"{reference.text} ({_id(reference)})"


def _id(reference: Reference) -> str:
    return reference.thing.id if reference.thing else "-"
