"""The two collators of a dataset: what training asks, and what evaluation asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import ProcessorMixin

from lightning_mllm.data.images.geometry import GeometryName
from lightning_mllm.data.loading.checks import check_sample, labels_of
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.labels import class_names
from lightning_mllm.data.text.prompts import ClassificationPrompt, ConversationPrompt, Prompt
from lightning_mllm.types import LabelSet, Sample


class InputOptions(NamedTuple):
    """What is asked about samples, and of which pictures.

    Attributes:
        prompt: By default `ClassificationPrompt` for samples with labels, else `ConversationPrompt`.
        train_prompt: What takes its place in training.
        geometry: How pictures are made square.
        train_geometry: What takes its place in training.
        seed: Of prompts that have none of their own.
    """

    prompt: Prompt | None
    train_prompt: Prompt | None
    geometry: GeometryName | None
    train_geometry: GeometryName | None
    seed: int


def make_collators(
    processor: ProcessorMixin, first: Sequence[Sample], split: Split, asking: InputOptions, **options: Any
) -> tuple[Collator, Collator, LabelSet | None]:
    """Return the collators of training and evaluation, and the classes if evaluation asks for them.

    Args:
        processor: The checkpoint's.
        first: The samples of the split that has all classes.
        split: Its name.
        asking: What is asked.
        **options: Of `Collator`.

    Raises:
        DataError: The first sample is none, or class names can't be told apart or are too long.
        ConfigError: Options do not fit the checkpoint.
    """
    check_sample(fetch_sample(first, 0), split)
    labelled = first[0].label is not None
    prompt = asking.prompt or (ClassificationPrompt() if labelled else ConversationPrompt())
    names = class_names(labels_of(first)) if labelled else ()

    def collator(prompt: Prompt, geometry: GeometryName | None) -> Collator:
        label_names = names if prompt.asks_for_label else ()
        return Collator(processor, prompt.seeded(asking.seed), label_names, geometry=geometry, **options)

    training = collator(asking.train_prompt or prompt, asking.train_geometry or asking.geometry)
    evaluation = collator(prompt, asking.geometry)
    asks = labelled and prompt.asks_for_label
    return training, evaluation, evaluation.label_set(replace(first[0], label=names[0])) if asks else None
