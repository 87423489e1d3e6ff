"""Balanced questions that test a model of the world, on scenes that are not in its training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count as numbers
from typing import Literal, get_args

from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.language.asking import ask
from lightning_mllm.testbed.language.presence import Pair, Sampling, ask_presence
from lightning_mllm.testbed.language.questions import WORDINGS, Question, QuestionType
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import Pairs, Scene, draw_scene

Part = Literal["seen", "held_out", "presence", "blind", "text"]
PARTS: tuple[Part, ...] = get_args(Part)
SAMPLINGS: tuple[Sampling, ...] = ("random", "popular", "adversarial")

_BALANCED = {  # type with few answers -> their number: each is right equally often
    QuestionType.CHOOSE_REL: 4,
    QuestionType.COMPARE_ATTR: 3,
    QuestionType.LOGICAL_OBJ: 2,
}
_POPULAR = 15  # number of popular pairs, of the 56 that training shows
_COUNTED = 2000  # number of scenes in which pairs are counted


@dataclass(frozen=True, kw_only=True)
class ExamQuestion:
    """A question with its scene.

    Attributes:
        id: Name of the question, unique in its examination.
        kind: Kind by which accuracy is reported, e.g. "seen/ChooseAttr/0" or "presence/random".
        scene: Scene that the question is about.
        text: Text of the question.
        answer: The one right answer.
        question: The question with its structure; None for a question of presence.
    """

    id: str
    kind: str
    scene: Scene
    text: str
    answer: str
    question: Question | None = None


def examination(
    part: Part,
    count: int,
    *,
    seed: int = 0,
    split: str = "test",
    types: Collection[QuestionType] = tuple(QuestionType),
) -> Iterator[ExamQuestion]:
    """Yield `count` questions of each kind of a part.

    Each question has its own scene, with 2 to 5 objects.

    Args:
        part: Part of the examination. "seen": the six types, on pairs of colour and shape that
            training shows; "held_out": the six types, on pairs that it does not show; "presence":
            questions of presence, half of them about something that is there; "blind": like
            "seen", to be asked without the picture; "text": like "seen", to be asked with the
            scene's facts instead of the picture.
        count: Number of questions per kind; answers are balanced if it is a multiple of 12.
        seed: Seed of the scenes.
        split: Name of the split; different splits have different scenes.
        types: Which of the six types are asked; it does not matter to questions of presence.

    Raises:
        ConfigError: There is no such part, or `count` is less than 1.
    """
    if part not in PARTS:
        raise ConfigError(f"An examination has no part {part!r}. Choose among {', '.join(PARTS)}.")
    if count < 1:
        raise ConfigError(
            f"An examination cannot have {count} questions of each kind. Ask for 1 or more."
        )
    if part == "presence":
        for sampling in SAMPLINGS:
            yield from _ask_presence(sampling, count, f"{seed}/{split}")
        return
    for type in filter(types.__contains__, QuestionType):
        for wording in range(len(WORDINGS[type])):
            yield from _ask_type(part, type, wording, count, f"{seed}/{split}")


def _ask_type(
    part: Part, type: QuestionType, wording: int, count: int, key: str
) -> Iterator[ExamQuestion]:
    """Yield questions of one wording; if there are few answers, each is right equally often."""
    kind = f"{part}/{type}/{wording}"
    pairs: Pairs = "held_out" if part == "held_out" else "seen"
    answers = 2 if (type, wording) == (QuestionType.QUERY_ATTR, 0) else _BALANCED.get(type, 1)
    quota = -(-count // answers) if answers > 1 else count
    given: Counter[str] = Counter()
    for scene, draw in _draw_scenes(f"{key}/{kind}", pairs):
        question = ask(type, scene, draw, pairs, wording)
        if question is None or given[question.answer] >= quota:
            continue
        given[question.answer] += 1
        yield ExamQuestion(
            id=scene.id,
            kind=kind,
            scene=scene,
            text=question.text,
            answer=question.answer,
            question=question,
        )
        if given.total() == count:
            return


def _ask_presence(sampling: Sampling, count: int, key: str) -> Iterator[ExamQuestion]:
    kind, given = f"presence/{sampling}", 0
    for scene, draw in _draw_scenes(f"{key}/{kind}", "seen"):
        asked = ask_presence(
            scene, draw, sampling=sampling, present=given % 2 == 0, popular=_popular_pairs()
        )
        if asked is None:
            continue
        given += 1
        yield ExamQuestion(
            id=scene.id, kind=kind, scene=scene, text=asked.text, answer=asked.answer
        )
        if given == count:
            return


def _draw_scenes(key: str, pairs: Pairs) -> Iterator[tuple[Scene, Draw]]:
    for number in numbers():
        name = f"{key}/{number}"
        yield draw_scene(name, objects=(2, 5), pairs=pairs), Draw("question", name)


@cache
def _popular_pairs() -> tuple[Pair, ...]:
    """Return the most frequent pairs of some scenes, as POPE counts objects in a data set."""
    counts: Counter[Pair] = Counter()
    for number in range(_COUNTED):
        scene = draw_scene(f"popular/{number}")
        counts.update((thing.color, thing.shape) for thing in scene.objects)
    return tuple(pair for pair, _ in counts.most_common(_POPULAR))
