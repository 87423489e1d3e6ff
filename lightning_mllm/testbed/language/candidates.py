"""What questions can be about: objects, values and words, chosen so that nothing tells the answer but the scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product

from lightning_mllm.testbed.language.references import Reference, refer
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import ATTRIBUTES, COLORS, HELD_OUT, SIDE, Attribute, Pairs, Scene, SceneObject

Form = tuple[int, bool, bool, int]  # how many colours are named, same modifier, same shape, how many held-out pairs
NamedPair = tuple[Reference, Reference]

_MIDDLE = 4  # pixels around the middle, in which an object is on neither side
_MODIFIERS: tuple[Attribute, ...] = ("color", "texture")


def subjects(scene: Scene, pairs: Pairs) -> list[SceneObject]:
    """Return the objects that a question can be about."""
    if pairs != "held_out":
        return list(scene.objects)
    return [thing for thing in scene.objects if (thing.color, thing.shape) in HELD_OUT]


def of_any_value(scene: Scene, attribute: Attribute, draw: Draw, pairs: Pairs) -> SceneObject | None:
    """Return an object to ask an attribute of: each value of the scene is as likely, however many objects have it.

    None if all objects have one value, so that whatever is seen of the scene would tell it.
    """
    values = {thing.value(attribute): None for thing in scene.objects}
    if len(values) == 1 < len(scene.objects):
        return None
    value = draw.one(list(values))
    fitting = [thing for thing in subjects(scene, pairs) if thing.value(attribute) == value]
    return draw.one(fitting) if fitting else None


def fitting_pair(
    scene: Scene,
    draw: Draw,
    pairs: Pairs,
    fits: Callable[[SceneObject, SceneObject], bool],
    hidden: tuple[Attribute, ...] = (),
) -> tuple[Reference, Reference] | None:
    """Return two objects of which the first is a subject, and which fit together."""
    candidates = [
        (thing, other)
        for thing in subjects(scene, pairs)
        for other in scene.objects
        if other is not thing and fits(thing, other)
    ]
    for thing, other in draw.shuffled(candidates):
        first, second = refer(scene, thing, draw, hidden=hidden), refer(scene, other, draw, hidden=hidden)
        if first and second:
            return first, second
    return None


def wrong_value(scene: Scene, thing: SceneObject, attribute: Attribute, draw: Draw, pairs: Pairs) -> str:
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


def _there(things: Sequence[SceneObject]) -> list[Reference]:
    """Return all words, of colour or texture and shape, for what is there."""
    return [Reference(thing, f"{thing.value(modifier)} {thing.shape}") for thing in things for modifier in _MODIFIERS]


def _absent(scene: Scene, pairs: Pairs) -> list[Reference]:
    """Return words for what is not there, made of what is: an object's shape with another one's colour or texture."""
    found = []
    for modifier in _MODIFIERS:
        there = {(thing.value(modifier), thing.shape) for thing in scene.objects}
        if modifier == "color" and pairs == "seen":
            there |= HELD_OUT
        values, shapes = ({thing.value(name): None for thing in scene.objects} for name in (modifier, "shape"))
        found += [f"{value} {shape}" for value in values for shape in shapes if (value, shape) not in there]
    return [Reference(None, words) for words in found]


def named_pairs(scene: Scene, pairs: Pairs, both: bool) -> dict[bool, dict[Form, list[NamedPair]]]:
    """Return which two things a question can name so that the answer is yes (True) or no (False), by their form."""
    there, absent = _there(subjects(scene, pairs)), _absent(scene, pairs)
    mixed = list(product(there, absent))
    if both:
        present = product(there, _there(scene.objects))
        fitting = {True: [pair for pair in present if pair[0].thing is not pair[1].thing], False: mixed}
    else:
        fitting = {True: mixed, False: list(combinations(absent, 2))}
    return {answer: _by_form(candidates, pairs) for answer, candidates in fitting.items()}


def _by_form(candidates: Sequence[NamedPair], pairs: Pairs) -> dict[Form, list[NamedPair]]:
    """Group pairs by all that their words alone tell: sorts of modifiers, what they share, held-out pairs."""
    groups: dict[Form, list[NamedPair]] = {}
    for pair in candidates:
        (modifier, shape), (other_modifier, other_shape) = (each.text.split() for each in pair)
        held_out = sum(tuple(each.text.split()) in HELD_OUT for each in pair)
        if pair[0].text == pair[1].text or (pairs == "held_out" and not held_out):
            continue
        colors = (modifier in COLORS) + (other_modifier in COLORS)
        form = (colors, modifier == other_modifier, shape == other_shape, held_out)
        groups.setdefault(form, []).append(pair)
    return groups


def side_of(thing: SceneObject) -> str | None:
    """Return the side of the picture that an object is on; None near the middle."""
    offset = thing.x - SIDE // 2
    return None if abs(offset) < _MIDDLE else "left" if offset < 0 else "right"
