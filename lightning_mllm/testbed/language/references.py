"""Words for the objects of a scene: descriptions that fit exactly one of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations

from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import ATTRIBUTES, Attribute, Scene, SceneObject

_LONGEST = 2  # attributes that a reference names


@dataclass(frozen=True)
class Reference:
    """An object and what it is called.

    Attributes:
        thing: The object; None where the scene has none that the words fit.
        text: E.g. "small circle", without an article.
    """

    thing: SceneObject | None
    text: str


def describe(thing: SceneObject, attributes: Collection[Attribute]) -> str:
    """Name some attributes of an object, in the order of `ATTRIBUTES`; without its shape it is an "object"."""
    words = [thing.value(attribute) for attribute in ATTRIBUTES if attribute in attributes]
    return " ".join(words if "shape" in attributes else [*words, "object"])


def refer(scene: Scene, thing: SceneObject, draw: Draw, *, hidden: Collection[Attribute] = ()) -> Reference | None:
    """Return a reference to an object that fits no other; None if there is none of at most two attributes.

    Args:
        scene: The object's scene.
        thing: The object.
        draw: Chooses among the references.
        hidden: Attributes that must not be named.
    """
    usable = [attribute for attribute in ATTRIBUTES if attribute not in hidden]
    names = [
        attributes
        for count in range(1, _LONGEST + 1)
        for attributes in combinations(usable, count)
        if not any(
            other is not thing and all(other.value(name) == thing.value(name) for name in attributes)
            for other in scene.objects
        )
    ]
    return Reference(thing, describe(thing, draw.one(names))) if names else None


def article(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
