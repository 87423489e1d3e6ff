"""The test-bed: a small visual world with exact truth, and a small LLaVA that was trained in it.

Nothing here needs Lightning but the DataModules (`datamodules.py`, `domains/datamodule.py`).
"""

from __future__ import annotations

from lightning_mllm.testbed.asking import ask
from lightning_mllm.testbed.canvas import draw_image
from lightning_mllm.testbed.captions import caption
from lightning_mllm.testbed.checkpoints import STAGES, Stage, checkpoint
from lightning_mllm.testbed.draws import Draw
from lightning_mllm.testbed.exams import ExamQuestion, examination
from lightning_mllm.testbed.presence import PresenceQuestion, ask_presence
from lightning_mllm.testbed.questions import Question, QuestionType
from lightning_mllm.testbed.scenes import HELD_OUT, Scene, SceneObject, draw_scene

__all__ = [
    "HELD_OUT",
    "STAGES",
    "Draw",
    "ExamQuestion",
    "PresenceQuestion",
    "Question",
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
]
