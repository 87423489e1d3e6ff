"""The two collators of a dataset: what training asks, and what evaluation asks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.sample_checks import check_sample, list_sample_labels
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.labels import collect_labels
from lightning_mllm.data.text.prompts import ClassificationPrompt, ConversationPrompt, Prompt
from lightning_mllm.types import LabelSet, Sample

logger = logging.getLogger(__name__)


class CollatorPairOptions(NamedTuple):
    """What is asked about samples, and how their pictures are made square.

    Attributes:
        prompt: What is asked; by default `ClassificationPrompt` for samples with labels, else
            `ConversationPrompt`.
        train_prompt: What is asked in training; by default as in evaluation.
        geometry: How pictures are made square; by default what the checkpoint was trained with.
        train_geometry: How pictures are made square in training; by default as in evaluation.
        seed: The seed for prompts that have none of their own.
    """

    prompt: Prompt | None
    train_prompt: Prompt | None
    geometry: GeometryName | None
    train_geometry: GeometryName | None
    seed: int


def make_collator_pair(
    processor: CheckpointProcessor,
    first: Sequence[Sample],
    split: Split,
    inputs: CollatorPairOptions,
    **options: Any,
) -> tuple[Collator, Collator, LabelSet | None]:
    """Return the collators of training and evaluation, and the classes if evaluation asks for them.

    Args:
        processor: The processor of the checkpoint.
        first: The samples of the split that has all classes.
        split: The name of that split.
        inputs: What is asked, and how pictures are made square.
        **options: Further options of both collators.

    Raises:
        DataError: The first sample is not a sample, or class names can't be told apart or are too
            long.
        ConfigError: Options do not fit the checkpoint.
    """
    check_sample(fetch_sample(first, 0), split)
    labelled = first[0].label is not None
    prompt = inputs.prompt or (ClassificationPrompt() if labelled else ConversationPrompt())
    names = collect_labels(list_sample_labels(first)) if labelled else ()

    def make(prompt: Prompt, geometry: GeometryName | None) -> Collator:
        label_names = names if prompt.asks_for_label else ()
        seeded = prompt.seeded(inputs.seed)
        return Collator(processor, seeded, label_names, geometry=geometry, **options)

    training = make(inputs.train_prompt or prompt, inputs.train_geometry or inputs.geometry)
    evaluation = make(prompt, inputs.geometry)
    listed = getattr(prompt, "listed", None)
    if listed and listed < len(names):
        logger.warning(
            "Each question lists %d of the %d classes, the right one among them: accuracy is that "
            "of a choice among %d (chance: %.3g), not among all. Likelihood still scores all.",
            listed,
            len(names),
            listed,
            1 / listed,
        )
    labels = None
    if labelled and prompt.asks_for_label:
        labels = evaluation.label_set(replace(first[0], label=names[0]))
    for collator in (training, evaluation):
        if collator.label_names:
            collator.check_class_list(first[0])
    return training, evaluation, labels
