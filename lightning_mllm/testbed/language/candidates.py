"""Objects, values and words that a question can be about.

They are chosen so that only the scene tells the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product

from lightning_mllm.testbed.language.references import Reference, make_reference
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import (
    ATTRIBUTES,
    COLORS,
    HELD_OUT,
    SIDE,
    Attribute,
    Pairs,
    Scene,
    SceneObject,
)

# number of colours named, equal modifiers, equal shapes, number of held-out pairs
Form = tuple[int, bool, bool, int]
NamedPair = tuple[Reference, Reference]

_MIDDLE = 4  # an object this near to the middle, in pixels, is on neither side
_MODIFIERS: tuple[Attribute, ...] = ("color", "texture")


def list_candidate_subjects(scene: Scene, pairs: Pairs) -> list[SceneObject]:
    """Return the objects that a question can be about."""
    if pairs != "held_out":
        return list(scene.objects)
    return [thing for thing in scene.objects if (thing.color, thing.shape) in HELD_OUT]


def choose_candidate_object(
    scene: Scene, attribute: Attribute, draw: Draw, pairs: Pairs
) -> SceneObject | None:
    """Return an object to ask an attribute of.

    Each value in the scene is equally likely, however many objects have it. None if all objects
    have the same value: then any object that is seen would tell the answer.
    """
    values = {thing.value(attribute): None for thing in scene.objects}
    if len(values) == 1 < len(scene.objects):
        return None
    value = draw.one(list(values))
    subjects = list_candidate_subjects(scene, pairs)
    fitting = [thing for thing in subjects if thing.value(attribute) == value]
    return draw.one(fitting) if fitting else None


def choose_candidate_pair(
    scene: Scene,
    draw: Draw,
    pairs: Pairs,
    fits: Callable[[SceneObject, SceneObject], bool],
    hidden: tuple[Attribute, ...] = (),
) -> NamedPair | None:
    """Return two objects that fit together; the first of them is one that questions are about."""
    candidates = []
    for thing in list_candidate_subjects(scene, pairs):
        for other in scene.objects:
            if other is not thing and fits(thing, other):
                candidates.append((thing, other))
    for thing, other in draw.shuffled(candidates):
        first = make_reference(scene, thing, draw, hidden=hidden)
        second = make_reference(scene, other, draw, hidden=hidden)
        if first and second:
            return first, second
    return None


def choose_wrong_candidate(
    scene: Scene, thing: SceneObject, attribute: Attribute, draw: Draw, pairs: Pairs
) -> str:
    """Return a value that an object does not have, of another object of the scene if possible."""
    values = [value for value in ATTRIBUTES[attribute] if value != thing.value(attribute)]
    if pairs == "seen":
        values = [value for value in values if not _makes_held_out(thing, attribute, value)]
    near = {other.value(attribute) for other in scene.objects}
    return draw.one([value for value in values if value in near] or values)


def _makes_held_out(thing: SceneObject, attribute: Attribute, value: str) -> bool:
    """Return whether an object with another value would have a held-out pair."""
    if attribute == "color":
        return (value, thing.shape) in HELD_OUT
    return attribute == "shape" and (thing.color, value) in HELD_OUT


def _name_present(things: Sequence[SceneObject]) -> list[Reference]:
    """Return all names of objects that are there: a colour or a texture, and a shape."""
    named = []
    for thing in things:
        for modifier in _MODIFIERS:
            named.append(Reference(thing, f"{thing.value(modifier)} {thing.shape}"))
    return named


def _name_absent(scene: Scene, pairs: Pairs) -> list[Reference]:
    """Return names of absent objects: the shape of one object and the modifier of another.

    A modifier is a colour or a texture.
    """
    shapes = dict.fromkeys(thing.shape for thing in scene.objects)
    named = []
    for modifier in _MODIFIERS:
        excluded = {(thing.value(modifier), thing.shape) for thing in scene.objects}
        if modifier == "color" and pairs == "seen":
            excluded |= HELD_OUT
        values = dict.fromkeys(thing.value(modifier) for thing in scene.objects)
        for value, shape in product(values, shapes):
            if (value, shape) not in excluded:
                named.append(Reference(None, f"{value} {shape}"))
    return named


def group_candidate_pairs(
    scene: Scene, pairs: Pairs, both: bool
) -> dict[bool, dict[Form, list[NamedPair]]]:
    """Return pairs of things that a question can name, by answer (yes: True) and by form.

    Args:
        scene: Scene that the question is about.
        pairs: Which pairs of colour and shape may be named.
        both: Whether the question asks for both things, not for one or the other.
    """
    present, absent = (
        _name_present(list_candidate_subjects(scene, pairs)),
        _name_absent(scene, pairs),
    )
    mixed = list(product(present, absent))
    if both:
        all_present = product(present, _name_present(scene.objects))
        yes = [pair for pair in all_present if pair[0].thing is not pair[1].thing]
        no = mixed
    else:
        yes, no = mixed, list(combinations(absent, 2))
    return {True: _group_by_form(yes, pairs), False: _group_by_form(no, pairs)}


def _group_by_form(candidates: Sequence[NamedPair], pairs: Pairs) -> dict[Form, list[NamedPair]]:
    """Group pairs by everything that their words alone tell; see `Form`."""
    groups: dict[Form, list[NamedPair]] = {}
    for pair in candidates:
        modifier, shape = pair[0].text.split()
        other_modifier, other_shape = pair[1].text.split()
        held_out = ((modifier, shape) in HELD_OUT) + ((other_modifier, other_shape) in HELD_OUT)
        if pair[0].text == pair[1].text or (pairs == "held_out" and not held_out):
            continue
        colors = (modifier in COLORS) + (other_modifier in COLORS)
        form = (colors, modifier == other_modifier, shape == other_shape, held_out)
        groups.setdefault(form, []).append(pair)
    return groups


def find_candidate_side(thing: SceneObject) -> str | None:
    """Return the side of the picture, "left" or "right", that an object is on.

    None near the middle.
    """
    offset = thing.x - SIDE // 2
    if abs(offset) < _MIDDLE:
        return None
    return "left" if offset < 0 else "right"
