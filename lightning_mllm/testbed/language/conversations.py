"""The conversations about a scene that the stages of the model are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from lightning_mllm.testbed.domains import glyphs, leaves, lesions, textures
from lightning_mllm.testbed.language.asking import ask
from lightning_mllm.testbed.language.captions import (
    CAPTION_REQUEST,
    caption,
    caption_object,
    caption_place,
    write_caption_notes,
)
from lightning_mllm.testbed.language.presence import Sampling, ask_presence
from lightning_mllm.testbed.language.questions import QuestionType
from lightning_mllm.testbed.language.references import make_reference
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import ATTRIBUTES, CELLS, HELD_OUT, Pairs, Scene
from lightning_mllm.types import Turn

Exchange = tuple[str, str]  # what the user says, and the answer
Maker = Callable[[Scene, Draw, Pairs], Exchange | None]

# types of questions that are about two objects
_HARD = (QuestionType.CHOOSE_REL, QuestionType.COMPARE_ATTR, QuestionType.LOGICAL_OBJ)
FOREIGN_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *map(str, range(10)),
    *glyphs.CLASSES,
    *textures.CLASSES,
    *leaves.CLASSES,
    *lesions.CLASSES,
)
_ROUNDS = 20  # times that every kind of exchange is tried; a scene of one object has few


def converse_on_questions(
    scene: Scene, draw: Draw, count: int, pairs: Pairs = "seen", emphasis: int = 1
) -> list[Exchange]:
    """Return `count` short questions: of the six types and of presence, in turn.

    Questions about two objects, and questions of presence, take longest to learn: each of their
    types comes `emphasis` times as often as another.
    """
    makers: list[Maker] = [*(partial(_ask, type) for type in QuestionType), _ask_presence]
    hard: list[Maker] = [*(partial(_ask, type) for type in _HARD), _ask_presence]
    return _collect([*makers, *hard * (emphasis - 1)], scene, draw, count, pairs)


def converse_on_lookups(scene: Scene, draw: Draw, count: int) -> list[Exchange]:
    """Return `count` requests for all facts about an object, named by a description or a place."""
    return _collect([_describe, _locate, _identify], scene, draw, count, "seen")


def _collect(
    makers: Sequence[Maker], scene: Scene, draw: Draw, count: int, pairs: Pairs
) -> list[Exchange]:
    """Return `count` different exchanges; fewer if the scene has fewer."""
    asked: list[Exchange] = []
    for _ in range(_ROUNDS):
        for maker in draw.shuffled(makers):
            exchange = maker(scene, draw, pairs)
            if exchange is not None and exchange not in asked:
                asked.append(exchange)
        if len(asked) >= count:
            break
    return asked[:count]


def converse_on_caption(scene: Scene) -> list[Exchange]:
    """Return the request for a caption, and the caption."""
    return [(CAPTION_REQUEST, caption(scene))]


def converse_on_words(draw: Draw) -> list[Exchange]:
    """Return words of the world in random order, to be repeated: this teaches copying.

    Of each held-out pair, one word is left out.
    """
    absent = {draw.one(sorted(pair)) for pair in sorted(HELD_OUT)}
    words: list[str] = []
    for values in ATTRIBUTES.values():
        words += [word for word in values if word not in absent]
    words += [str(cell + 1) for cell in range(CELLS)]
    return _repeat(words, draw, 6, 24)


def converse_on_foreign_words(draw: Draw) -> list[Exchange]:
    """Return class names of the domains, digits and numerals, to be repeated.

    No picture of the world needs them. But training lowers the logit of a word that is never an
    answer, and a frozen LLM keeps it low.
    """
    return _repeat(FOREIGN_WORDS, draw, 4, 8)


def _repeat(words: Sequence[str], draw: Draw, least: int, most: int) -> list[Exchange]:
    chosen = " ".join(draw.one(words) for _ in range(draw.between(least, most)))
    return [(f"Repeat: {chosen}", chosen)]


def add_notes_to_conversation(
    scene: Scene, exchanges: Sequence[Exchange], draw: Draw
) -> list[Exchange]:
    """Put the facts about the scene, as text, where its picture would be."""
    (first, answer), *others = exchanges
    return [(f"{write_caption_notes(scene, draw)}\n{first}", answer), *others]


def write_conversation_turns(exchanges: Sequence[Exchange], images: int = 0) -> list[Turn]:
    """Write exchanges as turns; the images come before the first."""
    written: list[Turn] = []
    for user, answer in exchanges:
        written += [
            Turn("user", user, images=0 if written else images),
            Turn("assistant", answer),
        ]
    return written


def _ask(type: QuestionType, scene: Scene, draw: Draw, pairs: Pairs) -> Exchange | None:
    question = ask(type, scene, draw, pairs)
    return None if question is None else (question.text, question.answer)


def _ask_presence(scene: Scene, draw: Draw, pairs: Pairs) -> Exchange | None:
    sampling: Sampling = draw.one(("random", "adversarial"))
    present = draw.happens(0.5)
    question = ask_presence(scene, draw, sampling=sampling, present=present, pairs=pairs)
    return None if question is None else (question.text, question.answer)


def _describe(scene: Scene, draw: Draw, pairs: Pairs) -> Exchange | None:
    thing = draw.one(scene.objects)
    reference = make_reference(scene, thing, draw)
    if reference is None:
        return None
    facts = f"{caption_object(thing)} at {caption_place(thing)}"
    return f"Describe the {reference.text}.", facts


def _locate(scene: Scene, draw: Draw, pairs: Pairs) -> Exchange | None:
    thing = draw.one(scene.objects)
    reference = make_reference(scene, thing, draw)
    return None if reference is None else (f"Where is the {reference.text}?", caption_place(thing))


def _identify(scene: Scene, draw: Draw, pairs: Pairs) -> Exchange | None:
    thing = draw.one(scene.objects)
    if any(other is not thing and other.cell == thing.cell for other in scene.objects):
        return None
    return f"What is at {caption_place(thing)}?", caption_object(thing)
