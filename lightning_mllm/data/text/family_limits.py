"""Which conversations a family can't read."""

from __future__ import annotations

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.errors import DataError


def check_family_limits(dialogue: Dialogue, sample_id: str, processor: CheckpointProcessor) -> None:
    """Refuse a conversation of which a family's model would not read what is meant.

    Raises:
        DataError: It has several exchanges or a system text, and positions of the prompt see later
            ones; or it has several images, and the family takes one.
    """
    family, name = processor.family, processor.config.model_type
    exchanges = len(dialogue.turns) // 2
    if family.sees == "prompt whole" and exchanges > 1:
        raise DataError(
            f"Sample {sample_id!r} has {exchanges} exchanges, but {name} reads one: positions of "
            "its prompt see later ones, so an earlier answer would be seen before it is given, and "
            "its processor writes no turns. Make a sample of each exchange.",
            "turns",
        )
    if family.sees == "prompt whole" and dialogue.system:
        raise DataError(
            f"Sample {sample_id!r} has a system text, but {name} reads images and a question only. "
            "Set `prompt.system: null`, or write it into the question.",
            "turns",
        )
    images = sum(turn.images for turn in dialogue.turns)
    if family.one_image and images > 1:
        raise DataError(
            f"Sample {sample_id!r} has {images} images, but {name} takes one per sample here: its "
            "processor cuts no picture into tiles where there are several, so they can't be "
            "processed one by one. Give the sample one image, or choose another family.",
            "images",
        )
