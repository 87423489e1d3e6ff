"""Questions of presence as in POPE (Li et al., 2023): about objects that are there or might be."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

from lightning_mllm.testbed.language.references import add_article_to_reference
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import COLORS, HELD_OUT, SHAPES, Pairs, Scene

Sampling = Literal["random", "popular", "adversarial"]
Pair = tuple[str, str]  # colour and shape

QUESTION = "Is there {pair} in the picture?"


@dataclass(frozen=True)
class PresenceQuestion:
    """A question of presence.

    Attributes:
        text: Text of the question.
        answer: The right answer, "yes" or "no".
        pair: Colour and shape that the question asks for.
        sampling: How absent pairs are chosen.
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
    """Ask whether a scene has an object of a colour and a shape.

    Args:
        scene: Scene that the question is about.
        draw: Random choices, here of the pair.
        sampling: How to choose the pair. "random": any pair; "popular": one of the `popular`
            pairs; "adversarial": if it is absent, a colour and a shape that are both there, but
            not in one object.
        present: Whether to ask for something that is there.
        pairs: With "seen", no pair in `HELD_OUT` is asked for.
        popular: Most frequent pairs of a data set.

    Returns:
        The question. None if the scene does not allow both answers: then the scenes with a
        question would tell which answer is more likely.
    """
    candidates = _list_candidates(scene, sampling, popular)
    objects = {(thing.color, thing.shape): None for thing in scene.objects}
    there = [pair for pair in objects if pair in candidates]
    excluded = {*objects, *(HELD_OUT if pairs == "seen" else ())}
    absent = [pair for pair in candidates if pair not in excluded]
    if not there or not absent:
        return None
    pair = draw.one(there if present else absent)
    text = QUESTION.format(pair=add_article_to_reference(" ".join(pair)))
    return PresenceQuestion(text, "yes" if present else "no", pair, sampling)


def _list_candidates(scene: Scene, sampling: Sampling, popular: tuple[Pair, ...]) -> list[Pair]:
    """Return the pairs among which to choose; some are there, others not."""
    if sampling == "random":
        return list(product(COLORS, SHAPES))
    if sampling == "popular":
        return list(popular)
    colors = [thing.color for thing in scene.objects]
    return list(product(colors, [thing.shape for thing in scene.objects]))
