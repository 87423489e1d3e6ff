"""Questions whose answers captions of the same picture agree on.

A picture has several captions by different people. What at least two of them say, and none of them
contradicts, is taken as true; what none of them mentions, or hints at, as absent. Each kind is
balanced, so that a model that sees no picture gains little:

- `presence`: as many pictures with an object as without it are asked for it.
- `choice`: "Is there a dog or a horse?" is asked of as many pictures with the one as with the
  other.
- `count`, `colour`: no answer about a thing is more frequent than the second most frequent one.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from lightning_mllm.evaluation.hallucination.objects import ObjectVocabulary
from lightning_mllm.real.captions import Captions

VOCABULARY = Path(__file__).with_name("objects.txt")
AGREEING = 2  # captions that say the same

_MASS = {"snow", "water"}
_PEOPLE = "person|people|crowd|group|adult|child|children|kid|kids|baby|toddler|teen|teens|teenager"
_SOMEBODY = f"{_PEOPLE}|couple|family|someone|player|players|team|rider|they|guy|guys|friends"
_UNCLEAR = {  # an object -> words after which it may well be in the picture
    "man": f"{_SOMEBODY}|he|his|him|male|boy|boys|worker|biker|skateboarder|surfer|climber",
    "woman": f"{_SOMEBODY}|she|her|female|girl|girls|bride|worker|biker|skateboarder|surfer",
    "boy": f"{_SOMEBODY}|he|his|him|male|man|men|skateboarder|surfer|biker",
    "girl": f"{_SOMEBODY}|she|her|female|woman|women|lady|skateboarder|surfer|biker",
    "dog": "animal|animals|pet|pets|wolf",
    "horse": "animal|animals|rodeo|cowboy|jockey|carriage",
    "bird": "animal|animals|wings|flock",
    "bicycle": "biker|bikers|rider|riders|biking|cycling|motorcycle|ramp|race",
    "motorcycle": "bike|biker|bikers|biking|rider|riders|race|atv|quad",
    "boat": "rowing|sailing|paddling|dock|harbor|rafting|oar",
    "skateboard": "ramp|trick|skater|skaters|skating|board|skate",
    "surfboard": "board|wave|waves|wakeboard|bodyboard|kayak",
    "snow": "ice|icy|winter|mountain|mountains|slope|white|snowmobile|hill",
    "water": "beach|swim|swimming|swimmer|wave|waves|surf|surfer|splash|splashing|wet|boat|dive|"
    "diving|fish|fishing|shore|bathing|swimsuit|kayak|canoe|raft|dock|sprinkler|hose",
}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "another": 1, "two": 2, "three": 3, "four": 4}
_ANY_NUMBER = "|".join(_NUMBERS)
_WORDS = ("", "one", "two", "three", "four")
_COUNTED = {"dog": "dogs", "man": "men", "woman": "women", "boy": "boys", "girl": "girls"}
_COLOURS = ("black", "white", "brown", "red", "blue", "green", "yellow", "orange", "pink", "purple")
_OTHER_COLOURS = ("grey", "gray", "tan", "beige", "gold", "golden", "silver", "blond", "blonde")
_COLOURED = ("dog", "shirt", "dress", "jacket", "hat", "ball", "car", "coat", "horse", "bike")
_BEFORE = "a|an|the|his|her|their|its|in|on|with|of|at|and a|and the"  # a thing and its adjectives
_COLOUR = "|".join((*_COLOURS, *_OTHER_COLOURS))


@dataclass(frozen=True)
class PictureQuestion:
    """A question about a picture.

    Attributes:
        image: File name of the picture.
        kind: `presence`, `choice`, `count` or `colour`.
        text: The question, with how to answer.
        answer: One word.
    """

    image: str
    kind: str
    text: str
    answer: str


def make_questions(captions: Captions, seed: int) -> list[PictureQuestion]:
    """Return all questions about the pictures of a split, in the order of kind and picture.

    Args:
        captions: File name of a picture -> its captions.
        seed: Seed of what is drawn, where more pictures would do than are asked about.
    """
    draw = random.Random(seed)
    lower = {image: [*map(str.lower, texts)] for image, texts in captions.items()}
    there, absent = _find_objects(lower)
    return [
        *_ask_for_presence(there, absent, draw),
        *_ask_to_choose(there, absent, draw),
        *_ask(_COUNT, lower, draw),
        *_ask(_COLOUR_OF, lower, draw),
    ]


_Places = Mapping[str, list[str]]  # object -> pictures


def _find_objects(captions: Captions) -> tuple[_Places, _Places]:
    """Return which pictures surely have, and surely lack, each object."""
    vocabulary = ObjectVocabulary.read(VOCABULARY)
    there, absent = defaultdict(list), defaultdict(list)
    for image, texts in captions.items():
        named = Counter[str]()
        for text in texts:
            named.update(set(vocabulary.named(text)))
        for name in vocabulary.names:
            hinted = re.search(rf"\b({_UNCLEAR[name]})\b", " ".join(texts))
            if named[name] >= AGREEING:
                there[name].append(image)
            elif not named[name] and not hinted:
                absent[name].append(image)
    return there, absent


def _ask_for_presence(
    there: _Places, absent: _Places, draw: random.Random
) -> Iterator[PictureQuestion]:
    for name in there:
        count = min(len(there[name]), len(absent[name]))
        text = f"Is there {_with_article(name)} in the picture? Answer yes or no."
        for answer, images in (("yes", there[name]), ("no", absent[name])):
            for image in sorted(draw.sample(images, count)):
                yield PictureQuestion(image, "presence", text, answer)


def _ask_to_choose(
    there: _Places, absent: _Places, draw: random.Random
) -> Iterator[PictureQuestion]:
    for pair in combinations(there, 2):
        first, second = draw.sample(pair, 2)
        text = (
            f"Is there {_with_article(first)} or {_with_article(second)} in the picture? Answer "
            "with one word."
        )
        fitting = []
        for name, other in ((first, second), (second, first)):
            fitting.append(sorted(set(there[name]) & set(absent[other])))
        count = min(len(fitting[0]), len(fitting[1]), len(there[first]) // len(there))
        for name, images in zip((first, second), fitting, strict=True):
            for image in sorted(draw.sample(images, count)):
                yield PictureQuestion(image, "choice", text, name)


@dataclass(frozen=True)
class _Property:
    """What can be asked about a thing.

    Attributes:
        kind: Name of the kind of question.
        things: What it is asked about.
        find: Captions of a picture in lower case, and a thing -> the answer, if there is one.
        phrase: Thing -> the question.
    """

    kind: str
    things: Sequence[str]
    find: Callable[[Sequence[str], str], str | None]
    phrase: Callable[[str], str]


def _ask(asked: _Property, captions: Captions, draw: random.Random) -> Iterator[PictureQuestion]:
    """Yield the questions about one property of each thing that has it."""
    for thing in asked.things:
        images = defaultdict(list)
        for image, texts in captions.items():
            if (answer := asked.find(texts, thing)) is not None:
                images[answer].append(image)
        sizes = sorted(map(len, images.values()), reverse=True)
        most = sizes[1] if len(sizes) > 1 else 0
        for answer, found in images.items():
            for image in sorted(draw.sample(found, min(most, len(found)))):
                yield PictureQuestion(image, asked.kind, asked.phrase(thing), answer)


def _find_count(texts: Sequence[str], thing: str) -> str | None:
    counts = [count_things(text, thing, _COUNTED[thing]) for text in texts]
    agreed = _agree([count for count in counts if count is not None])
    return None if agreed is None else _WORDS[agreed]


def count_things(text: str, one: str, many: str) -> int | None:
    """Return how many of a thing a caption says there are; None where it does not say.

    "a black dog and a white dog" are two, and so is "dog chases another dog", since captions begin
    without an article; "the dog" and "dogs" are no number.

    Args:
        text: A caption in lower case.
        one: The thing in the singular.
        many: The thing in the plural.
    """
    mentions = re.findall(rf"\b(?:{one}|{many})\b", text)
    if not re.match(rf"(?:the|{_ANY_NUMBER})\b", text):
        text = f"a {text}"
    told = re.findall(rf"\b({_ANY_NUMBER})\s+(?:[a-z-]+\s+){{0,3}}?({one}|{many})\b", text)
    if not mentions or len(told) < len(mentions):
        return None
    total = 0
    for number, form in told:
        if (_NUMBERS[number] == 1) != (form == one):
            return None
        total += _NUMBERS[number]
    return total if total < len(_WORDS) else None


def find_colour(texts: Sequence[str], thing: str) -> str | None:
    """Return the one colour that captions give a thing; None where there is none, or several.

    Args:
        texts: The captions of a picture, in lower case.
        thing: The thing in the singular.
    """
    colours = []
    for text in texts:
        if re.search(rf"\b{thing}s\b", text) or len(re.findall(rf"\b{thing}\b", text)) > 1:
            return None
        found = re.search(rf"((?:(?!(?:{_BEFORE})\b)[a-z-]+,?\s+){{0,4}}){thing}\b", text)
        words = re.findall(rf"\b(?:{_COLOUR})\b", found[1].replace("-", " ")) if found else []
        mixed = found is not None and re.search(
            rf"(spotted|striped|plaid|multi|colou?r|checkered|and ({_COLOUR}))", found[1]
        )
        if len(words) > 1 or mixed:
            return None
        colours += words
    agreed = _agree(colours)
    return agreed if agreed in _COLOURS else None


def _agree(values: Sequence[Any]) -> Any:
    """Return what at least two captions say, and no caption contradicts."""
    if len(values) < AGREEING or len(set(values)) > 1:
        return None
    return values[0]


def _with_article(name: str) -> str:
    return name if name in _MASS else f"a {name}"


def _count_question(thing: str) -> str:
    return f"How many {_COUNTED[thing]} are in the picture? Answer with one word."


def _colour_question(thing: str) -> str:
    return f"What colour is the {thing}? Answer with one word."


_COUNT = _Property("count", tuple(_COUNTED), _find_count, _count_question)
_COLOUR_OF = _Property("colour", _COLOURED, find_colour, _colour_question)
