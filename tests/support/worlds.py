"""Parts of the world that several tests look at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from lightning_mllm.testbed import (
    Draw,
    Question,
    QuestionType,
    Scene,
    ask,
    caption,
    draw_image,
    draw_scene,
    examination,
)
from lightning_mllm.testbed.language import conversations as talk
from lightning_mllm.testbed.language.questions import WORDINGS
from lightning_mllm.testbed.training.exams import Part
from lightning_mllm.testbed.world.scenes import Pairs


def scenes(count: int, pairs: Pairs = "seen", objects: tuple[int, int] = (1, 5)) -> list[Scene]:
    return [
        draw_scene(f"tests/{pairs}/{number}", objects=objects, pairs=pairs)
        for number in range(count)
    ]


def questions(count: int, pairs: Pairs = "seen") -> Iterator[tuple[Scene, Question]]:
    """Ask each wording of each type about `count` scenes, where there is something to ask."""
    for type in QuestionType:
        for wording in range(len(WORDINGS[type])):
            for scene in scenes(count, pairs):
                question = ask(type, scene, Draw("tests", scene.id, type, wording), pairs, wording)
                if question is not None:
                    yield scene, question


def fingerprint() -> str:
    """Return a digest of some of all that the world makes."""
    digest = hashlib.sha256()
    for scene in scenes(8) + scenes(8, "held_out"):
        draw = Draw("fingerprint", scene.id)
        exchanges = [
            *talk.converse_on_questions(scene, draw, 8),
            *talk.converse_on_lookups(scene, draw, 4),
            *talk.converse_on_words(draw),
        ]
        said = talk.add_notes_to_conversation(scene, exchanges, draw)
        digest.update(repr((scene, scene.graph(), caption(scene), said)).encode())
        digest.update(draw_image(scene).tobytes())
    parts: tuple[Part, ...] = ("seen", "held_out", "presence")
    for part in parts:
        digest.update(repr(list(examination(part, 2))).encode())
    return digest.hexdigest()
