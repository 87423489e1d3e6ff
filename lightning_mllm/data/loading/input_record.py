"""What a training run records of how it makes a model's inputs, and what an export takes from that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import ProcessorMixin

from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.text.chat_messages import build_messages
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.rendering import Renderer
from lightning_mllm.types import Sample

_SHOWN = 120  # characters of a prompt in a warning

logger = logging.getLogger(__name__)


def describe_inputs(collator: Collator, sample: Sample) -> dict[str, Any]:
    """Return how a collator makes a model's inputs, as plain data.

    Returns:
        The `geometry`; and of the sample, what is `asked`, and what the checkpoint's own chat
        `template` makes of the same conversation.
    """
    dialogue = collator.prompt.dialogue(sample, collator.label_names, epoch=0)
    rendered = Renderer(collator.processor).render(dialogue)
    asked = rendered.text[: rendered.answers[-1].start]
    return {
        "geometry": str(collator.geometry),
        "asked": asked,
        "template": _by_template(collator.processor, dialogue),
    }


def trained_geometry(record: Mapping[str, Any], data: Any) -> GeometryName | None:
    """Return the geometry that an export has to write, and warn of what it can't write.

    Args:
        record: Our entry in the training checkpoint; without one, its `inputs` alone.
        data: The DataModule, whose geometry goes before the checkpoint's; None if there is none.

    Returns:
        Its name; None if nothing but the checkpoint's default can be meant.
    """
    if record.get("edited"):
        logger.warning(
            "A callback changed the model's computations in training (e.g. SkipComputations). The "
            "exported model computes everything: its answers are those of an evaluation without the "
            "callback, not those of the validation."
        )
    inputs = record.get("inputs", {})
    if inputs.get("asked") != inputs.get("template"):
        logger.warning(
            "The exported chat template does not write what the model was asked. It was asked %r, the "
            "template makes %r of this. Whoever opens the folder has to write the prompt as the first.",
            *_around_the_difference(inputs["asked"], inputs["template"]),
        )
    asked: GeometryName | None = getattr(data, "geometry", None)
    validated: GeometryName | None = inputs.get("geometry")
    if asked and validated and asked != validated:
        logger.warning(
            "The model was validated with geometry '%s'; '%s' is exported, as data says.",
            validated,
            asked,
        )
    if "policy" in record and data is None and validated is None:
        logger.warning(
            "The training checkpoint does not say how pictures were made square, and no data is named: "
            "the default is exported. Add --config <the run's config.yaml> if it was another."
        )
    return asked or validated


def _by_template(processor: ProcessorMixin, dialogue: Dialogue) -> str:
    """Return a conversation up to its last answer, as `apply_chat_template` writes it."""
    script, texts = build_messages(dialogue)
    messages = script.messages(texts)[:-1]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _around_the_difference(first: str, second: str) -> tuple[str, str]:
    differs = [one != other for one, other in zip(f"{first}\0", f"{second}\1", strict=False)]
    start = max(0, differs.index(True) - _SHOWN // 2)
    return first[start : start + _SHOWN], second[start : start + _SHOWN]
