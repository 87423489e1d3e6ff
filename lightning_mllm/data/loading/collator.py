"""From samples to a padded batch with its loss mask and segments: all that a model's forward takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from lightning_mllm.data.images.files import Size
from lightning_mllm.data.images.geometry import Geometry, GeometryName, check_geometry, default_geometry
from lightning_mllm.data.images.pictures import Picture, PictureReader
from lightning_mllm.data.images.regions import Regions
from lightning_mllm.data.loading.sample_errors import name_errors
from lightning_mllm.data.text.encoding import EncodedSample, Encoder
from lightning_mllm.data.text.fitting import Fitted, Fitter, LongAnswers
from lightning_mllm.data.text.options import find_options
from lightning_mllm.data.text.prompts import Dialogue, Prompt
from lightning_mllm.data.text.rendering import Renderer
from lightning_mllm.data.text.turns import images_first
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


class Collator:
    """Makes batches of samples for one checkpoint and prompt.

    Args:
        processor: The checkpoint's, from `load_processor`.
        prompt: What is asked about a sample.
        label_names: Class names; empty where samples have no labels.
        geometry: How pictures are made square; by default what the checkpoint was trained with.
        max_length: Most tokens of a sample, image tokens included; longer conversations lose their first exchanges.
        long_answers: What happens to samples whose last answer does not fit (see `Fitter`).
        split_special_tokens: Whether texts may quote special tokens, which are then read as text.
        padding_side: Where shorter samples are filled up.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        prompt: Prompt,
        label_names: Sequence[str] = (),
        *,
        geometry: Geometry | GeometryName | None = None,
        max_length: int | None = None,
        long_answers: LongAnswers = "raise",
        split_special_tokens: bool = False,
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
        self.long_answers, self.split_special_tokens = long_answers, split_special_tokens
        self._targets = {name: k for k, name in enumerate(self.label_names)}
        self._encoder = Encoder(processor, split_special_tokens=split_special_tokens)
        self._fitter = Fitter(self._encoder, self.max_length, long_answers, len(self.label_names))
        self._regions = Regions(processor, self.geometry)
        self._reader = PictureReader(processor, self.geometry)
        pad = processor.tokenizer.pad_token_id
        self.pad_id = int(processor.tokenizer.eos_token_id if pad is None else pad)

    def __call__(self, items: Sequence[tuple[int, Sample]]) -> MultimodalBatch:
        """Collate samples, each with the epoch that its prompt is drawn for.

        Raises:
            DataError: An image can't be opened, or a sample's text can't be written out and located; the message names
                the sample.
        """
        samples = [sample for _, sample in items]
        opened = [self._reader.read(sample) for sample in samples]  # all first: to and fro takes a third more time
        encoded: list[EncodedSample] = []
        answers: list[AnswerForms | None] = []
        pictures: list[list[Picture]] = []
        for (epoch, sample), shown in zip(items, opened, strict=True):
            with name_errors(sample):
                dialogue = self.prompt.dialogue(sample, self.label_names, epoch)
                fitted = self._fitter.fit(dialogue, sample, [len(picture.ids) for picture in shown])
                if fitted is None:
                    raise DataError(
                        f"Of sample {sample.id!r} no exchange fits into max_length {self.max_length} with what it is "
                        "about. Raise max_length, shorten its last question, or leave it out."
                    )
                pictures.append(shown[fitted.images :])
                encoded.append(self._expand(fitted, sample, pictures[-1]))
                answers.append(self._answer_forms(fitted.dialogue, sample) if sample.kind else None)
        return self._batch(samples, encoded, answers, pictures)

    def fit(self, sample: Sample, image_tokens: Sequence[int]) -> Fitted | None:
        """Write out what of a sample fits, without a look at its pictures; return None where nothing does.

        Args:
            sample: The sample.
            image_tokens: How many tokens stand for each of its images.

        Raises:
            DataError: It can't be written out, or its last answer does not fit.
        """
        with name_errors(sample):
            dialogue = self.prompt.dialogue(sample, self.label_names, epoch=0)
            fitted = self._fitter.fit(dialogue, sample, image_tokens)
            if fitted is not None and sample.kind:
                self._answer_forms(fitted.dialogue, sample)
            return fitted

    def bound_text(self, sample: Sample) -> int | None:
        """Return the most tokens that a sample's text can have, not tokenised; None if that is not known."""
        with name_errors(sample):
            return self._encoder.bound(self.prompt.dialogue(sample, self.label_names, epoch=0))

    def check(self, sample: Sample) -> int:
        """Write a sample out, to see whether it can be, and return the token that ends its answer.

        Raises:
            DataError: It can't, or does not fit.
            CheckpointError: The chat template alters a text.
        """
        self.check_template(sample)
        return self([(0, sample)]).end_id

    def check_template(self, sample: Sample) -> None:
        """Run the chat template on a sample's own texts; a CheckpointError says that it alters one."""
        with name_errors(sample):
            self.renderer.check(self.prompt.dialogue(sample, self.label_names, epoch=0), sample.id)

    def check_turns(self, sample: Sample) -> tuple[Turn, ...]:
        """Return a sample's turns, in which there is no special token.

        Raises:
            DataError: There is one, the turns are none that the prompt takes, or the last question does not name the
                sample's options.
            CheckpointError: The chat template can't write such turns.
            ConfigError: It refuses them.
        """
        dialogue = self.prompt.dialogue(sample, self.label_names, epoch=0)
        self._encoder.check_text(dialogue.system, sample.id)
        for turn in dialogue.turns:
            self._encoder.check_text(turn.text, sample.id)
            self._encoder.check_text(turn.instruction, sample.id)
        self.renderer.check_shape(dialogue)
        questions = [images_first(turn).text for turn in dialogue.turns if turn.role == "user" and turn.text]
        if sample.options and questions:
            find_options(questions[-1], sample.options, sample.id)
        return dialogue.turns

    @property
    def renderer(self) -> Renderer:
        """Writes conversations out as the chat template does."""
        return self._encoder.renderer

    def shows_a_box(self, sample: Sample, size: Size) -> bool:
        """Return whether a patch of a sample's picture, of a (width, height), shows a part of one of its boxes.

        Raises:
            DataError: It can't be told for this family.
        """
        return bool(self._regions.shown(sample, size, self.count_image_tokens(size)).any())

    def count_image_tokens(self, size: Size) -> int:
        """Return how many tokens stand for a picture of a (width, height)."""
        return self._reader.count_tokens(size)

    def count_views(self, size: Size) -> int:
        """Return how many views the processor makes of a picture of a (width, height)."""
        return self._reader.count_views(size)

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

    def _expand(self, fitted: Fitted, sample: Sample, pictures: Sequence[Picture]) -> EncodedSample:
        """Return the tokens of a sample, one per visual feature, cut where they are too many."""
        token = self._encoder.image_token_id
        counts = [picture.ids.count(token) for picture in pictures]
        regions = self._regions.masks(sample, [picture.size for picture in pictures], counts)
        tokens = fitted.tokens.expand_images(token, [picture.ids for picture in pictures], regions)
        return tokens.truncate(len(tokens) - fitted.excess) if fitted.excess else tokens

    def _batch(
        self,
        samples: Sequence[Sample],
        encoded: Sequence[EncodedSample],
        answers: Sequence[AnswerForms | None],
        pictures: Sequence[Sequence[Picture]],
    ) -> MultimodalBatch:
        pixels = [picture.pixels for each in pictures for picture in each]
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
            vision={
                name: pad_sequence([each[name][0] for each in pixels], batch_first=True)
                for name in (pixels[0] if pixels else ())
            },
            image_counts=tuple(map(len, pictures)),
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
    end = encoded[0].end_id
    for tokens in encoded:
        if tokens.end_id != end:
            raise DataError(
                f"The answers of samples {encoded[0].id!r} and {tokens.id!r} end with different tokens ({end} and "
                f"{tokens.end_id}), so generation would not know where to stop. Check their last characters."
            )
    return end
