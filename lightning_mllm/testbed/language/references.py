"""Words for the objects of a scene: descriptions that fit exactly one of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations

from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import ATTRIBUTES, Attribute, Scene, SceneObject

_LONGEST = 2  # greatest number of attributes that a reference names


@dataclass(frozen=True)
class Reference:
    """An object and the words for it.

    Attributes:
        thing: The object; None if the words fit no object of the scene.
        text: The words without an article, e.g. "small circle".
    """

    thing: SceneObject | None
    text: str


def _name_object(thing: SceneObject, attributes: Collection[Attribute]) -> str:
    """Name an object by some of its attributes, in the order of `ATTRIBUTES`.

    If the shape is not among them, the name ends with "object".
    """
    words = [thing.value(attribute) for attribute in ATTRIBUTES if attribute in attributes]
    return " ".join(words if "shape" in attributes else [*words, "object"])


def make_reference(
    scene: Scene, thing: SceneObject, draw: Draw, *, hidden: Collection[Attribute] = ()
) -> Reference | None:
    """Return a reference that fits one object only; None if two attributes are not enough.

    Args:
        scene: Scene of the object.
        thing: Object to refer to.
        draw: Random choices, here among the references.
        hidden: Attributes that must not be named.
    """
    usable = [attribute for attribute in ATTRIBUTES if attribute not in hidden]
    fitting: list[tuple[Attribute, ...]] = []
    for count in range(1, _LONGEST + 1):
        for attributes in combinations(usable, count):
            if _tells_apart(scene, thing, attributes):
                fitting.append(attributes)
    return Reference(thing, _name_object(thing, draw.one(fitting))) if fitting else None


def _tells_apart(scene: Scene, thing: SceneObject, attributes: Collection[Attribute]) -> bool:
    """Return whether no other object has all these attributes of an object."""
    for other in scene.objects:
        if other is not thing and all(
            other.value(name) == thing.value(name) for name in attributes
        ):
            return False
    return True


def add_article_to_reference(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
