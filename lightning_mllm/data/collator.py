"""From samples to a padded batch with its loss mask and segments: all that a model's forward takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from lightning_mllm.data.encoding import EncodedSample, Encoder
from lightning_mllm.data.geometry import (
    Geometry,
    GeometryName,
    apply_geometry,
    check_geometry,
    default_geometry,
    fill_colour,
)
from lightning_mllm.data.images import open_image
from lightning_mllm.data.prompts import Prompt
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import IGNORE_INDEX, LabelSet, MultimodalBatch, Sample, Segment, TokenSpans

PaddingSide = Literal["left", "right"]

logger = logging.getLogger(__name__)


class Collator:
    """Makes batches of samples for one checkpoint and prompt.

    Args:
        processor: The checkpoint's, from `load_processor`.
        prompt: What is asked about a sample.
        label_names: Class names; empty where samples have no labels.
        geometry: How pictures are made square; by default what the family was trained with.
        max_length: Most tokens of a sample, image tokens included; longer ones lose the front of their question.
        padding_side: Where shorter samples are filled up.

    Attributes:
        shortened: Number of samples that lost a part of their question (in this process).
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        prompt: Prompt,
        label_names: Sequence[str] = (),
        *,
        geometry: Geometry | GeometryName | None = None,
        max_length: int | None = None,
        padding_side: PaddingSide = "right",
    ) -> None:
        if padding_side not in ("left", "right"):
            raise ConfigError(f"padding_side is {padding_side!r}; it can be 'left' or 'right'.")
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length is {max_length}; it must be at least 1.")
        self.processor, self.prompt, self.label_names = processor, prompt, tuple(label_names)
        self.geometry = default_geometry(processor) if geometry is None else Geometry(geometry)
        check_geometry(self.geometry, processor)
        self.max_length = int(max_length or processor.tokenizer.model_max_length)
        self.padding_side = padding_side
        self.shortened = 0
        self._targets = {name: k for k, name in enumerate(self.label_names)}
        self._fill = fill_colour(processor)
        self._encoder = Encoder(processor)
        self._replacement_ids: dict[str, list[int]] = {}
        pad = processor.tokenizer.pad_token_id
        self.pad_id = int(processor.tokenizer.eos_token_id if pad is None else pad)

    def __call__(self, items: Sequence[tuple[int, Sample]]) -> MultimodalBatch:
        """Collate samples, each with the epoch that its prompt is drawn for.

        Raises:
            DataError: An image can't be opened, or a sample's text can't be written out and located; the message names
                the sample.
        """
        samples = [sample for _, sample in items]
        images = self._process_images(samples)
        encoded: list[EncodedSample] = []
        first = 0  # index of the sample's first image in the batch
        for epoch, sample in items:
            tokens = self._encode(sample, epoch)
            numbers = range(first, first + len(sample.images))
            tokens = tokens.expand_images(self._encoder.image_token_id, [self._image_ids(images, i) for i in numbers])
            first += len(sample.images)
            encoded.append(self._fit(tokens))
        return self._batch(samples, encoded, images)

    def label_set(self, sample: Sample) -> LabelSet:
        """Return the class names with the tokens that they have behind a sample's prompt.

        Raises:
            DataError: A class name has more tokens than `max_length`.
        """
        token_ids = []
        for name in self.label_names:
            ids = self._encode(replace(sample, label=name), epoch=0).answer_ids
            if len(ids) >= self.max_length:
                raise DataError(
                    f"The class name {name[:60]!r}... has {len(ids)} tokens, but the context ends at {self.max_length}."
                    " Shorten the name."
                )
            token_ids.append(ids)
        return LabelSet(self.label_names, tuple(token_ids))

    def _encode(self, sample: Sample, epoch: int) -> EncodedSample:
        dialogue = self.prompt.dialogue(sample, self.label_names, epoch)
        return self._encoder.encode(dialogue, sample.id, images=len(sample.images))

    def _process_images(self, samples: Sequence[Sample]) -> BatchFeature:
        pictures = [
            apply_geometry(open_image(image, _name(sample, image, k)), self.geometry, self._fill)
            for sample in samples
            for k, image in enumerate(sample.images, 1)
        ]
        return self.processor.image_processor(pictures, return_tensors="pt") if pictures else BatchFeature()

    def _image_ids(self, images: BatchFeature, index: int) -> list[int]:
        """Return the tokens that stand for an image: one per visual feature."""
        text = self.processor.replace_image_token(dict(images), index)
        if text not in self._replacement_ids:
            self._replacement_ids[text] = self.processor.tokenizer.encode(text, add_special_tokens=False)
        return self._replacement_ids[text]

    def _fit(self, tokens: EncodedSample) -> EncodedSample:
        fitting = tokens.shorten(self.max_length)
        if fitting is not tokens:
            self.shortened += 1
            if self.shortened == 1:
                logger.warning(
                    "Sample %r has %d tokens, more than max_length %d: the front of its question is cut. "
                    "Further samples are cut without a word.",
                    tokens.id,
                    len(tokens),
                    self.max_length,
                )
        return fitting

    def _batch(
        self, samples: Sequence[Sample], encoded: Sequence[EncodedSample], images: BatchFeature
    ) -> MultimodalBatch:
        input_ids = self._pad([tokens.input_ids for tokens in encoded], self.pad_id)
        masks = {name: self._pad([tokens.masks[name] for tokens in encoded], False) for name in Segment}
        real = self._pad([torch.ones_like(tokens.input_ids) for tokens in encoded], 0)
        names = self.processor.image_processor.model_input_names
        return MultimodalBatch(
            input_ids=input_ids,
            attention_mask=real,
            labels=input_ids.where(masks[Segment.ANSWER], IGNORE_INDEX),
            spans=TokenSpans(masks),
            targets=torch.tensor([self._target(sample) for sample in samples]),
            sample_ids=tuple(sample.id for sample in samples),
            vision={name: torch.as_tensor(images[name]) for name in names if name in images},
            pad_id=self.pad_id,
            end_id=_common_end(encoded),
        )

    def _pad(self, rows: list[Tensor], value: int | bool) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=value, padding_side=self.padding_side
        )

    def _target(self, sample: Sample) -> int:
        if sample.label is None or not self.label_names:
            return -1
        if sample.label not in self._targets:
            raise DataError(
                f"The label {sample.label!r} of sample {sample.id!r} is none of the {len(self.label_names)} classes."
            )
        return self._targets[sample.label]


def _common_end(encoded: Sequence[EncodedSample]) -> int:
    """Return the token that ends each sample's answer."""
    ends = [int(tokens.input_ids[-1]) for tokens in encoded]
    for tokens, end in zip(encoded, ends, strict=True):
        if end != ends[0]:
            raise DataError(
                f"The answers of samples {encoded[0].id!r} and {tokens.id!r} end with different tokens ({ends[0]} and "
                f"{end}), so generation would not know where to stop. Check their last characters."
            )
    return ends[0]


def _name(sample: Sample, image: object, k: int) -> str:
    return f"{image} (sample {sample.id!r})" if isinstance(image, Path) else f"Image {k} of sample {sample.id!r}"
