"""The questions by which a model of the world is judged: balanced, on scenes that no training saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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

_BALANCED = {  # types with few answers: each is the right one equally often
    QuestionType.CHOOSE_REL: 4,
    QuestionType.COMPARE_ATTR: 3,
    QuestionType.LOGICAL_OBJ: 2,
}
_POPULAR = 15  # most frequent pairs, of the 56 that training shows
_COUNTED = 2000  # scenes that they are counted in


@dataclass(frozen=True, kw_only=True)
class ExamQuestion:
    """A question with its scene.

    Attributes:
        id: Unique in its examination.
        kind: What its answer counts towards, e.g. "seen/ChooseAttr/0" or "presence/random".
        scene: What it is about.
        text: The question.
        answer: The right answer.
        question: The question with its structure; None for presence.
    """

    id: str
    kind: str
    scene: Scene
    text: str
    answer: str
    question: Question | None = None


def examination(part: Part, count: int, *, seed: int = 0, split: str = "test") -> Iterator[ExamQuestion]:
    """Yield `count` questions of each kind of a part, each about a scene of its own with 2 to 5 objects.

    Args:
        part: "seen": the six types, on pairs of colour and shape that training shows; "held_out": on those it does
            not; "presence": questions of presence, half of them about something that is there; "blind" and "text":
            like "seen", to be asked without the picture, or with the scene's facts in its place.
        count: Questions per kind; answers are balanced if it is a multiple of 12.
        seed: Seed of the scenes.
        split: Scenes of different splits are different.

    Raises:
        ConfigError: There is no such part, or `count` is less than 1.
    """
    if part not in PARTS:
        raise ConfigError(f"An examination has no part {part!r}. Choose among {', '.join(PARTS)}.")
    if count < 1:
        raise ConfigError(f"An examination cannot have {count} questions of each kind. Ask for 1 or more.")
    if part == "presence":
        for sampling in SAMPLINGS:
            yield from _presence(sampling, count, f"{seed}/{split}")
        return
    for type in QuestionType:
        for wording in range(len(WORDINGS[type])):
            yield from _questions(part, type, wording, count, f"{seed}/{split}")


def _questions(part: Part, type: QuestionType, wording: int, count: int, key: str) -> Iterator[ExamQuestion]:
    kind = f"{part}/{type}/{wording}"
    pairs: Pairs = "held_out" if part == "held_out" else "seen"
    answers = 2 if (type, wording) == (QuestionType.QUERY_ATTR, 0) else _BALANCED.get(type, 1)
    quota = -(-count // answers) if answers > 1 else count
    given: Counter[str] = Counter()
    for scene, draw in _scenes(f"{key}/{kind}", pairs):
        question = ask(type, scene, draw, pairs, wording)
        if question is None or given[question.answer] >= quota:
            continue
        given[question.answer] += 1
        yield ExamQuestion(
            id=scene.id, kind=kind, scene=scene, text=question.text, answer=question.answer, question=question
        )
        if given.total() == count:
            return


def _presence(sampling: Sampling, count: int, key: str) -> Iterator[ExamQuestion]:
    kind, given = f"presence/{sampling}", 0
    for scene, draw in _scenes(f"{key}/{kind}", "seen"):
        present = given % 2 == 0
        asked = ask_presence(scene, draw, sampling=sampling, present=present, popular=_popular_pairs())
        if asked is None:
            continue
        given += 1
        yield ExamQuestion(id=scene.id, kind=kind, scene=scene, text=asked.text, answer=asked.answer)
        if given == count:
            return


def _scenes(key: str, pairs: Pairs) -> Iterator[tuple[Scene, Draw]]:
    for number in numbers():
        name = f"{key}/{number}"
        yield draw_scene(name, objects=(2, 5), pairs=pairs), Draw("question", name)


@cache
def _popular_pairs() -> tuple[Pair, ...]:
    """Return the pairs that most scenes have: counted, as POPE counts objects of a data set."""
    scenes = (draw_scene(f"popular/{number}") for number in range(_COUNTED))
    counts = Counter((thing.color, thing.shape) for scene in scenes for thing in scene.objects)
    return tuple(pair for pair, _ in counts.most_common(_POPULAR))
