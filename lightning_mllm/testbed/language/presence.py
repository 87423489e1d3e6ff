"""Questions of presence in the manner of POPE (Li et al., 2023): of objects that are there, and that might be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_mllm.testbed.language.references import article
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import COLORS, HELD_OUT, SHAPES, Pairs, Scene

Sampling = Literal["random", "popular", "adversarial"]
Pair = tuple[str, str]  # colour and shape

QUESTION = "Is there {pair} in the picture?"


@dataclass(frozen=True)
class PresenceQuestion:
    """A question of presence.

    Attributes:
        text: The question.
        answer: "yes" or "no".
        pair: Colour and shape of what is asked for.
        sampling: How what is absent was chosen.
    """

    text: str
    answer: str
    pair: Pair
    sampling: Sampling


def ask_presence(
    scene: Scene,
    draw: Draw,
    *,
    sampling: Sampling,
    present: bool,
    pairs: Pairs = "seen",
    popular: tuple[Pair, ...] = (),
) -> PresenceQuestion | None:
    """Ask whether a scene has an object of a colour and shape.

    Args:
        scene: What it is about.
        draw: Chooses the object.
        sampling: How to choose what is asked for: any pair; one of the `popular` pairs, there or not; or, if absent
            and "adversarial", a colour and a shape that are both there, but not in one object.
        present: Whether to ask for something that is there.
        pairs: With "seen", no pair in `HELD_OUT` is asked for.
        popular: The most frequent pairs of a data set.

    Returns:
        The question; None if the scene does not serve both answers: else it would tell which one is the likelier.
    """
    objects = {(thing.color, thing.shape): None for thing in scene.objects}
    asked: dict[Sampling, list[Pair]] = {
        "random": [(color, shape) for color in COLORS for shape in SHAPES],
        "popular": list(popular),
        "adversarial": [(one.color, other.shape) for one in scene.objects for other in scene.objects],
    }
    there = [pair for pair in objects if pair in asked[sampling]]
    excluded = {*objects, *(HELD_OUT if pairs == "seen" else ())}
    absent = [pair for pair in asked[sampling] if pair not in excluded]
    if not there or not absent:
        return None
    fitting = there if present else absent
    color, shape = pair = draw.one(fitting)
    return PresenceQuestion(
        QUESTION.format(pair=article(f"{color} {shape}")), "yes" if present else "no", pair, sampling
    )
