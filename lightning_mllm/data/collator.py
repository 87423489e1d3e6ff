"""From samples to a padded batch with its loss mask and segments: all that a model's forward takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from lightning_mllm.data.encoding import EncodedSample, Encoder
from lightning_mllm.data.geometry import (
    Geometry,
    GeometryName,
    apply_geometry,
    check_geometry,
    default_geometry,
    shape_after,
)
from lightning_mllm.data.images import open_image
from lightning_mllm.data.naming import naming
from lightning_mllm.data.options import find_options
from lightning_mllm.data.prompts import Dialogue, Prompt
from lightning_mllm.data.regions import Regions
from lightning_mllm.data.views import count_views
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import (
    IGNORE_INDEX,
    AnswerForms,
    Forms,
    LabelSet,
    MultimodalBatch,
    Sample,
    Segment,
    TokenSpans,
    Turn,
)

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
        self._encoder = Encoder(processor)
        self._regions = Regions(processor, self.geometry)
        self._replacement_ids: dict[str, list[int]] = {}
        self._image_tokens: dict[tuple[int, int], int] = {}
        pad = processor.tokenizer.pad_token_id
        self.pad_id = int(processor.tokenizer.eos_token_id if pad is None else pad)

    def __call__(self, items: Sequence[tuple[int, Sample]]) -> MultimodalBatch:
        """Collate samples, each with the epoch that its prompt is drawn for.

        Raises:
            DataError: An image can't be opened, or a sample's text can't be written out and located; the message names
                the sample.
        """
        samples = [sample for _, sample in items]
        images, sizes = self._process_images(samples)
        encoded: list[EncodedSample] = []
        answers: list[AnswerForms | None] = []
        first = 0  # index of the sample's first image in the batch
        for epoch, sample in items:
            with naming(sample):
                dialogue = self.prompt.dialogue(sample, self.label_names, epoch)
                tokens = self._encoder.encode(dialogue, sample.id, len(sample.images), sample.options)
                numbers = range(first, first := first + len(sample.images))
                replacements = [self._image_ids(images, number) for number in numbers]
                counts = [ids.count(self._encoder.image_token_id) for ids in replacements]
                regions = self._regions.masks(sample, [sizes[number] for number in numbers], counts)
                tokens = tokens.expand_images(self._encoder.image_token_id, replacements, regions)
                encoded.append(self._fit(tokens))
                answers.append(self._answer_forms(dialogue, sample) if sample.kind else None)
        return self._batch(samples, encoded, answers, images)

    def check(self, sample: Sample) -> int:
        """Write a sample out, to see whether it can be, and return the token that ends its answer.

        Raises:
            DataError: It can't, or its question, which lists the classes, would have to be cut.
        """
        before = self.shortened
        batch = self([(0, sample)])
        cut, self.shortened = self.shortened > before, before
        self._refuse_cut(sample, cut)
        return batch.end_id

    def check_text(self, sample: Sample, image_tokens: Sequence[int]) -> int:
        """Do what `check` does without opening pictures, and return the token that ends the answer.

        Args:
            sample: The sample.
            image_tokens: How many tokens stand for each of its images.

        Raises:
            DataError: As for `check`.
        """
        with naming(sample):
            dialogue = self.prompt.dialogue(sample, self.label_names, epoch=0)
            tokens = self._encoder.encode(dialogue, sample.id, len(sample.images), sample.options)
            image = self._encoder.image_token_id
            tokens = tokens.expand_images(image, [[image] * count for count in image_tokens], {})
            self._refuse_cut(sample, tokens.shorten(self.max_length) is not tokens)
            if sample.kind:
                self._answer_forms(dialogue, sample)
            return int(tokens.input_ids[-1])

    def bound_text(self, sample: Sample) -> int | None:
        """Return the most tokens that a sample's text can have, without tokenising it; None if that is not known."""
        with naming(sample):
            return self._encoder.bound(self.prompt.dialogue(sample, self.label_names, epoch=0))

    def _refuse_cut(self, sample: Sample, cut: bool) -> None:
        if cut and self.label_names:
            raise DataError(
                f"The question of sample {sample.id!r}, which lists {len(self.label_names)} classes, does not fit into "
                f"max_length {self.max_length} with its images and answer; classes would be cut away. Raise "
                "max_length, use shorter class names, or a checkpoint with a longer context.",
                "too long",
            )

    def check_turns(self, sample: Sample) -> tuple[Turn, ...]:
        """Return a sample's turns, in which there is no special token.

        Raises:
            DataError: There is one, the turns are none that the prompt takes, or the last question does not name the
                sample's options.
        """
        turns = self.prompt.dialogue(sample, self.label_names, epoch=0).turns
        for turn in turns:
            self._encoder.check_text(turn.text, sample.id)
            self._encoder.check_text(turn.instruction, sample.id)
        questions = [turn.text for turn in turns if turn.role == "user" and turn.text]
        if sample.options and questions:
            find_options(questions[-1], sample.options, sample.id)
        return turns

    def shows_a_box(self, sample: Sample, size: tuple[int, int]) -> bool:
        """Return whether a patch of a sample's picture, of a (width, height), shows a part of one of its boxes.

        Raises:
            DataError: It can't be told for this family.
        """
        return bool(self._regions.shown(sample, size, self.count_image_tokens(size)).any())

    def count_image_tokens(self, size: tuple[int, int]) -> int:
        """Return how many tokens stand for a picture of a (width, height)."""
        width, height = shape_after(size, self.geometry)
        if (width, height) not in self._image_tokens:
            counts = self.processor._get_num_multimodal_tokens(  # type: ignore[attr-defined]  # of each family's class
                image_sizes=[(height, width)]
            )
            self._image_tokens[width, height] = int(counts["num_image_tokens"][0])
        return self._image_tokens[width, height]

    def count_views(self, size: tuple[int, int]) -> int:
        """Return how many views the processor makes of a picture of a (width, height)."""
        return count_views(shape_after(size, self.geometry), self.processor)

    def label_set(self, sample: Sample) -> LabelSet:
        """Return the class names with the tokens that they have behind a sample's prompt.

        Raises:
            DataError: A class name has more tokens than `max_length`.
        """
        token_ids = []
        for name in self.label_names:
            alone = self.prompt.dialogue(replace(sample, label=name), (name,), epoch=0)  # all names would take C x C
            ids = self._encoder.encode(alone, sample.id, images=len(sample.images)).answer_ids
            if len(ids) >= self.max_length:
                raise DataError(
                    f"The class name {name[:60]!r}... has {len(ids)} tokens, but the context ends at {self.max_length}."
                    " Shorten the name."
                )
            token_ids.append(ids)
        return LabelSet(self.label_names, tuple(token_ids))

    def _answer_forms(self, dialogue: Dialogue, sample: Sample) -> AnswerForms:
        """Return how the last answer begins, and the wrong one of the options."""

        def tokens(answer: str) -> tuple[int, ...]:
            turns = (*dialogue.turns[:-1], Turn("assistant", answer))
            return self._encoder.answer_ids(replace(dialogue, turns=turns), sample.id)[:-1]

        def forms(word: str) -> Forms:
            return Forms(tokens(word.lower()), tokens(word.capitalize()))

        return AnswerForms(forms(dialogue.turns[-1].text), forms(sample.options.false) if sample.options else None)

    def _process_images(self, samples: Sequence[Sample]) -> tuple[Mapping[str, Tensor], list[tuple[int, int]]]:
        """Return the pixels of all pictures, and the (width, height) that each had.

        They are decoded one at a time: eight photographs can take 1 GB.
        """
        processor = self.processor.image_processor
        features, sizes = [], []
        for sample in samples:
            for k, image in enumerate(sample.images, 1):
                with naming(sample):
                    opened = open_image(image, _name(sample, image, k))
                    sizes.append(opened.size)
                    features.append(processor([apply_geometry(opened, self.geometry, processor)], return_tensors="pt"))
        names = [name for name in processor.model_input_names if features and name in features[0]]
        pixels = {name: pad_sequence([each[name][0] for each in features], batch_first=True) for name in names}
        return pixels, sizes

    def _image_ids(self, images: Mapping[str, Tensor], index: int) -> list[int]:
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
        self,
        samples: Sequence[Sample],
        encoded: Sequence[EncodedSample],
        answers: Sequence[AnswerForms | None],
        images: Mapping[str, Tensor],
    ) -> MultimodalBatch:
        input_ids = self._pad([tokens.input_ids for tokens in encoded], self.pad_id)
        masks = {name: self._pad([tokens.masks[name] for tokens in encoded], False) for name in Segment}
        real = self._pad([torch.ones_like(tokens.input_ids) for tokens in encoded], 0)
        return MultimodalBatch(
            input_ids=input_ids,
            attention_mask=real,
            labels=input_ids.where(masks[Segment.ANSWER], IGNORE_INDEX),
            spans=TokenSpans(masks),
            targets=torch.tensor([self._target(sample) for sample in samples]),
            sample_ids=tuple(sample.id for sample in samples),
            pictures=tuple(sample.picture or sample.id for sample in samples),
            kinds=tuple(sample.kind for sample in samples),
            answers=tuple(answers),
            vision=images,
            image_counts=tuple(len(sample.images) for sample in samples),
            pad_id=self.pad_id,
            end_id=_common_end(encoded),
        )

    def _pad(self, rows: list[Tensor], value: int | bool) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=self.padding_side)

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
