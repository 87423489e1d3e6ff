"""The test-bed: a small visual world with exact truth, and a small LLaVA trained in it.

Only the DataModules need Lightning (`datamodules.py`, `pairs.py`, `domains/datamodule.py`).
"""

from __future__ import annotations

from lightning_mllm.testbed.language.asking import ask
from lightning_mllm.testbed.language.captions import caption
from lightning_mllm.testbed.language.presence import PresenceQuestion, ask_presence
from lightning_mllm.testbed.language.questions import Question, QuestionType
from lightning_mllm.testbed.training.checkpoints import STAGES, Stage, checkpoint
from lightning_mllm.testbed.training.exams import ExamQuestion, examination
from lightning_mllm.testbed.training.pairs import QuestionPair, make_question_pairs
from lightning_mllm.testbed.world.canvas import draw_image
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import HELD_OUT, Scene, SceneObject, draw_scene

__all__ = [
    "HELD_OUT",
    "STAGES",
    "Draw",
    "ExamQuestion",
    "PresenceQuestion",
    "Question",
    "QuestionPair",
    "QuestionType",
    "Scene",
    "SceneObject",
    "Stage",
    "ask",
    "ask_presence",
    "caption",
    "checkpoint",
    "draw_image",
    "draw_scene",
    "examination",
    "make_question_pairs",
]
