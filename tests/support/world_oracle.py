"""Answers the world's questions anew, by none of its code: from words and the list of objects.

What a question means is written here a second time, as a reader would take it; the tests compare.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from re import Match

from lightning_mllm.testbed import Scene, SceneObject

VALUES = {
    "size": ["small", "large"],
    "color": ["red", "green", "blue", "yellow", "orange", "purple", "cyan", "white"],
    "texture": ["solid", "striped", "dotted", "checkered"],
    "shape": ["circle", "square", "triangle", "diamond", "star", "cross", "ring", "moon"],
}
ATTRIBUTE_OF = {value: attribute for attribute, values in VALUES.items() for value in values}
COLOR, SHAPE = "|".join(VALUES["color"]), "|".join(VALUES["shape"])
RELATIONS: dict[str, Callable[[SceneObject, SceneObject], int]] = {  # by how many pixels
    "to the left of": lambda thing, anchor: anchor.x - thing.x,
    "to the right of": lambda thing, anchor: thing.x - anchor.x,
    "above": lambda thing, anchor: anchor.y - thing.y,
    "below": lambda thing, anchor: thing.y - anchor.y,
}
LEAST = 8  # pixels from which on a side is clear
SHORT = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Verdict:
    """What the scene says.

    Attributes:
        answer: The right answer.
        options: The options, in the order in which the question names them; empty if it names none.
        things: The objects that it names; those of a question of existence may be none or many.
        mentioned: Pairs of colour and shape that the words, read with the options, speak of.
    """

    answer: str
    options: tuple[str, ...] = ()
    things: tuple[SceneObject, ...] = ()
    mentioned: frozenset[tuple[str, str]] = frozenset()


def matching(scene: Scene, words: str) -> list[SceneObject]:
    """Return the objects that a description fits."""
    wanted = {ATTRIBUTE_OF[word]: word for word in words.split() if word != "object"}
    return [
        thing
        for thing in scene.objects
        if all(getattr(thing, name) == value for name, value in wanted.items())
    ]


def the(scene: Scene, words: str) -> SceneObject:
    """Return the one object that a description fits."""
    (thing,) = matching(scene, words)
    return thing


def pairs_in(text: str) -> set[tuple[str, str]]:
    """Return pairs of colour and shape side by side, in any order, or around other attributes."""
    between = rf"(?: (?:{'|'.join(VALUES['size'] + VALUES['texture'])}|\d \d))*"
    found = set(re.findall(rf"(?=\b({COLOR}){between} ({SHAPE}))", text))
    return found | {
        (color, shape)
        for shape, color in re.findall(rf"(?=\b({SHAPE}){between} ({COLOR})\b)", text)
    }


def judge(scene: Scene, text: str) -> Verdict:
    """Answer a question; exactly one form must fit it, and each description exactly one object."""
    matches = [
        (match, reader)
        for pattern, reader in FORMS.items()
        if (match := re.fullmatch(pattern, text))
    ]
    ((match, reader),) = matches
    return reader(scene, match)


def _choose(scene: Scene, match: Match[str]) -> Verdict:
    thing, options = the(scene, match["thing"]), (match["one"], match["two"])
    (attribute,) = {ATTRIBUTE_OF[option] for option in options}
    assert match.groupdict().get("attribute") in (None, attribute)
    assert not any(ATTRIBUTE_OF.get(word) == attribute for word in match["thing"].split()), (
        "the words tell the answer"
    )
    (answer,) = {getattr(thing, attribute)} & set(options)
    assert options[0] != options[1]
    pairs = pairs_in(match["thing"])
    if attribute == "color":
        pairs |= {
            (option, shape)
            for option in options
            for shape in match["thing"].split()[-1:]
            if shape != "object"
        }
    if attribute == "shape":
        colors = [word for word in match["thing"].split() if word in VALUES["color"]]
        pairs |= {(color, option) for option in options for color in colors}
    return Verdict(answer, options, (thing,), frozenset(pairs))


def _relate(scene: Scene, match: Match[str]) -> Verdict:
    thing, anchor = the(scene, match["thing"]), the(scene, match["anchor"])
    assert thing != anchor
    options = (match["one"], match["two"])
    (answer,) = [option for option in options if RELATIONS[option](thing, anchor) > 0]
    assert RELATIONS[answer](thing, anchor) >= LEAST
    return Verdict(SHORT[answer], tuple(SHORT[option] for option in options), (thing, anchor))


def _compare(scene: Scene, match: Match[str]) -> Verdict:
    thing, other = the(scene, match["thing"]), the(scene, match["other"])
    assert thing != other
    (answer,) = [name for name in VALUES if getattr(thing, name) == getattr(other, name)]
    return Verdict(answer, (), (thing, other))


def _exist(scene: Scene, match: Match[str]) -> Verdict:
    nouns = [re.sub(rf"({SHAPE})(es|s)$", r"\1", match[name]) for name in ("one", "two")]
    assert nouns[0] != nouns[1]
    found = [matching(scene, noun) for noun in nouns]
    holds = all(found) if match["word"] == "and" else any(found)
    return Verdict("yes" if holds else "no", (), tuple(thing for group in found for thing in group))


def _side(scene: Scene, match: Match[str]) -> Verdict:
    thing = the(scene, match["thing"])
    assert abs(thing.x - 32) >= LEAST // 2, "in the middle"
    return Verdict("left" if thing.x < 32 else "right", (), (thing,))


def _query(scene: Scene, match: Match[str]) -> Verdict:
    thing, attribute = the(scene, match["thing"]), match["attribute"]
    assert not any(ATTRIBUTE_OF.get(word) == attribute for word in match["thing"].split()), (
        "the words tell the answer"
    )
    return Verdict(getattr(thing, attribute), (), (thing,))


def _present(scene: Scene, match: Match[str]) -> Verdict:
    found = matching(scene, match["thing"])
    return Verdict("yes" if found else "no", (), tuple(found))


def _describe(scene: Scene, match: Match[str]) -> Verdict:
    thing = the(scene, match["thing"])
    return Verdict(f"{_words(thing)} at {_place(thing)}", (), (thing,))


def _locate(scene: Scene, match: Match[str]) -> Verdict:
    thing = the(scene, match["thing"])
    return Verdict(_place(thing), (), (thing,))


def _identify(scene: Scene, match: Match[str]) -> Verdict:
    (thing,) = [thing for thing in scene.objects if _place(thing) == match["place"]]
    return Verdict(_words(thing), (), (thing,))


def _caption(scene: Scene, match: Match[str]) -> Verdict:
    ordered = sorted(scene.objects, key=lambda thing: (thing.x, thing.y))
    return Verdict(
        ", ".join(f"{_words(thing)} at {_place(thing)}" for thing in ordered), (), tuple(ordered)
    )


def _words(thing: SceneObject) -> str:
    return f"{thing.size} {thing.color} {thing.texture} {thing.shape}"


def _place(thing: SceneObject) -> str:
    return f"{thing.x // 8 + 1} {thing.y // 8 + 1}"


def _any(options: Sequence[str]) -> str:
    return "|".join(map(re.escape, options))


_THING, _OTHER, _ANCHOR = (
    rf"(?P<{name}>[a-z]+(?: [a-z]+){{0,2}})" for name in ("thing", "other", "anchor")
)
_VALUE = "|".join(value for name in ("size", "color", "texture") for value in VALUES[name])
_EITHER = rf"(?P<one>{_VALUE}) or (?P<two>{_VALUE})"
_EITHER_SHAPE = rf"a (?P<one>{SHAPE}) or a (?P<two>{SHAPE})"
_EITHER_SIDE = rf"(?P<one>{_any([*RELATIONS])}) or (?P<two>{_any([*RELATIONS])})"
_ATTRIBUTE = "(?P<attribute>size|color|texture)"
_NOUNS = r"(?:an? )?(?P<one>[a-z]+ [a-z]+) (?P<word>or|and) (?:an? )?(?P<two>[a-z]+ [a-z]+)"
FORMS: dict[str, Callable[[Scene, Match[str]], Verdict]] = {
    rf"Is the {_THING} {_EITHER}\?": _choose,
    rf"What is the {_ATTRIBUTE} of the {_THING}, {_EITHER}\?": _choose,
    rf"Which {_ATTRIBUTE} does the {_THING} have, {_EITHER}\?": _choose,
    rf"(?:Is|What is|What kind of shape is) the {_THING},? {_EITHER_SHAPE}\?": _choose,
    rf"(?:Is|Where is) the {_THING},? {_EITHER_SIDE} the {_ANCHOR}\?": _relate,
    rf"What do (?:both )?the {_THING} and the {_OTHER} have in common\?": _compare,
    rf"Which property is common to the {_THING} and the {_OTHER}\?": _compare,
    rf"Is there (?:both )?{_NOUNS}\?": _exist,
    rf"Are there any {_NOUNS} in the picture\?": _exist,
    rf"On which side of the picture is the {_THING}\?": _side,
    rf"What {_ATTRIBUTE} is the {_THING}\?": _query,
    rf"What is the {_ATTRIBUTE} of the {_THING}\?": _query,
    rf"Is there an? (?P<thing>(?:{COLOR}) (?:{SHAPE})) in the picture\?": _present,
    rf"Describe the {_THING}\.": _describe,
    rf"Where is the {_THING}\?": _locate,
    r"What is at (?P<place>\d \d)\?": _identify,
    r"Describe the picture from left to right\.": _caption,
}
