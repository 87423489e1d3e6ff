"""Descriptions of whole scenes: every object with all its attributes and its place."""

from __future__ import annotations

from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import ATTRIBUTES, Scene, SceneObject

CAPTION_REQUEST = "Describe the picture from left to right."


def caption_object(thing: SceneObject) -> str:
    """Return an object's attributes, e.g. "small red striped circle"."""
    return " ".join(thing.value(attribute) for attribute in ATTRIBUTES)


def caption_place(thing: SceneObject) -> str:
    """Return the column and row of an object's centre, e.g. "3 5"."""
    return "{} {}".format(*thing.cell)


def caption(scene: Scene) -> str:
    """Return all objects with attributes and places, from left to right."""
    things = sorted(scene.objects, key=lambda thing: (thing.x, thing.y))
    return ", ".join(f"{caption_object(thing)} at {caption_place(thing)}" for thing in things)


def write_caption_notes(scene: Scene, draw: Draw) -> str:
    """Return the facts of the caption, with the objects in random order, to replace the picture.

    In every third note, the attributes of each object are in random order too.
    """
    shuffles = draw.happens(1 / 3)
    parts = []
    for thing in draw.shuffled(scene.objects):
        words = [*(thing.value(attribute) for attribute in ATTRIBUTES), caption_place(thing)]
        parts.append(" ".join(draw.shuffled(words) if shuffles else words))
    return ", ".join(parts)
