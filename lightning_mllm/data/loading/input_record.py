"""What a run records of how it makes a model's inputs, and what an export takes from that."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.chat_messages import build_messages
from lightning_mllm.data.text.rendering import Renderer, quote_rendering_difference
from lightning_mllm.types import Sample

_SHOWN = 120  # characters of a prompt in a warning

logger = logging.getLogger(__name__)


def make_input_record(
    collator: Collator, samples: Mapping[Split, Sequence[Sample]], name: str
) -> dict[str, Any]:
    """Return how a collator makes a model's inputs, and of what, as plain data.

    Args:
        collator: Makes the inputs of validation.
        samples: Split -> samples, with the split `val`.
        name: What the data is called.

    Returns:
        The `geometry`; for the first sample, what is `asked`, and what the checkpoint's own chat
        `template` makes of the same conversation; and of the `data` its `class`, its number of
        `samples` per split, and its number of `classes`.
    """
    sample = samples["val"][0]
    dialogue = collator.prompt.dialogue(sample, collator.label_names, epoch=0)
    renderer = Renderer(collator.processor)
    rendered = renderer.render(dialogue)
    messages, texts = build_messages(dialogue)
    return {
        "geometry": str(collator.geometry),
        "asked": rendered.text[: rendered.answers[-1].start],
        "template": renderer.template.run(messages.to_list(texts)[:-1], add_generation_prompt=True),
        "data": {
            "class": name,
            "samples": {split: len(each) for split, each in samples.items()},
            "classes": len(collator.label_names),
        },
    }


def geometry_of_input_record(record: Mapping[str, Any], data: Any) -> GeometryName | None:
    """Return the geometry that an export has to write, and warn of what it can't write.

    Args:
        record: What this package wrote into the training checkpoint; it may have `inputs` alone.
        data: The DataModule, whose geometry goes before the checkpoint's; None if there is none.

    Returns:
        The name of the geometry; None if only the checkpoint's default can be meant.
    """
    if record.get("edited"):
        logger.warning(
            "A callback changed the model's computations in training (e.g. SkipComputations). The "
            "exported model computes everything: its answers are those of an evaluation without "
            "the callback, not those of the validation."
        )
    inputs = record.get("inputs", {})
    if inputs.get("asked") != inputs.get("template"):
        logger.warning(
            "The exported chat template does not write what the model was asked. It was asked %r, "
            "the template makes %r of this. Whoever opens the folder has to write the prompt as "
            "the first.",
            *quote_rendering_difference(inputs["asked"], inputs["template"], _SHOWN),
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
            "The training checkpoint does not say how pictures were made square, and no data is "
            "named: the default is exported. Add --config <the run's config.yaml> if it was "
            "another."
        )
    return asked or validated
