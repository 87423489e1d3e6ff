"""From samples to a padded batch with labels and segments: all that a model's forward takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import (
    Geometry,
    GeometryName,
    Size,
    check_geometry,
    default_geometry,
    makes_tiles,
    warn_of_no_tiles,
)
from lightning_mllm.data.images.pictures import Picture, PictureReader, PictureText
from lightning_mllm.data.images.regions import Regions
from lightning_mllm.data.loading.bad_rows import TOO_LONG
from lightning_mllm.data.loading.batch import BatchRow, PaddingSide, make_batch
from lightning_mllm.data.loading.sample_errors import name_sample_errors
from lightning_mllm.data.text.encoded_sample import EncodedSample
from lightning_mllm.data.text.encoding import Encoder
from lightning_mllm.data.text.family_limits import check_family_limits
from lightning_mllm.data.text.fitting import FEWER_CLASSES, Fitted, Fitter, LongAnswers
from lightning_mllm.data.text.options import find_options
from lightning_mllm.data.text.prompts import Dialogue, Prompt
from lightning_mllm.data.text.rendering import Renderer
from lightning_mllm.data.text.turns import put_images_first_in_turn
from lightning_mllm.errors import ConfigError, DataError, UserError
from lightning_mllm.types import AnswerForms, Forms, LabelSet, Sample, Turn


class Collator:
    """Makes batches of samples for one checkpoint and prompt.

    Args:
        processor: The checkpoint's processor, from `load_processor`.
        prompt: What is asked about a sample.
        label_names: Class names; empty where samples have no labels.
        geometry: How pictures are made square; by default what the checkpoint was trained with.
        max_length: Most tokens of a sample, image tokens included; longer conversations lose their
            first exchanges.
        long_answers: What happens to samples whose last answer does not fit (see `Fitter`).
        split_special_tokens: Whether texts may quote special tokens, which are then read as text.
        padding_side: On which side shorter samples are padded.
    """

    def __init__(
        self,
        processor: CheckpointProcessor,
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
        self.processor, self.prompt = processor, prompt
        self.label_names = tuple(label_names)
        self.geometry = default_geometry(processor) if geometry is None else Geometry(geometry)
        check_geometry(self.geometry, processor)
        if geometry == "tiles" and not makes_tiles(processor.image_processor):
            warn_of_no_tiles(type(processor.hf).__name__)
        self.max_length = int(max_length or processor.tokenizer.model_max_length)
        self.padding_side = padding_side
        self.long_answers, self.split_special_tokens = long_answers, split_special_tokens
        self._targets = {name: k for k, name in enumerate(self.label_names)}
        self._encoder = Encoder(processor, split_special_tokens=split_special_tokens)
        self._fitter = Fitter(self._encoder, self.max_length, long_answers, len(self.label_names))
        self._regions = Regions(processor, self.geometry)
        self._reader = PictureReader(processor, self.geometry)
        tokenizer: Any = processor.tokenizer
        pad = tokenizer.pad_token_id
        self.pad_id = int(tokenizer.eos_token_id if pad is None else pad)

    def __call__(self, items: Sequence[tuple[int, Sample]]) -> MultimodalBatch:
        """Make a batch of samples, each with the epoch that its prompt is drawn for.

        Raises:
            DataError: An image can't be opened, or the text of a sample can't be encoded; the
                message names the sample.
        """
        # all pictures before all texts: to alternate takes a third more time
        pictures = [self._reader.read(sample) for _, sample in items]
        rows = []
        for (epoch, sample), shown in zip(items, pictures, strict=True):
            with name_sample_errors(sample):
                rows.append(self._encode(sample, epoch, shown))
        targets = [self._find_target(row.sample) for row in rows]
        return make_batch(rows, targets, self.processor, self.pad_id, self.padding_side)

    def fit(self, sample: Sample, images: Sequence[PictureText]) -> Fitted | None:
        """Encode the part of a sample that fits, without opening its pictures.

        Args:
            sample: The sample to encode.
            images: What stands for each of its images.

        Returns:
            What is left of the sample; None where it is to be left out.

        Raises:
            DataError: It can't be encoded, or its last answer does not fit.
        """
        with name_sample_errors(sample):
            fitted = self._fitter.fit(self._ask(sample), sample, images)
            if fitted is not None and sample.kind:
                self._encode_answer_forms(fitted.dialogue, sample)
            return fitted

    def check_class_list(self, sample: Sample) -> None:
        """Refuse a list of classes that is too long for the context even without a picture.

        Raises:
            DataError: It is.
        """
        shortest = replace(sample, label=min(self.label_names, key=len))
        example = self._reader.example
        images = [replace(example, runs=(1,) * len(example.runs))] * len(sample.images)
        try:
            with name_sample_errors(shortest):
                count = len(self._encoder.encode(self._ask(shortest), shortest.id, images))
        except UserError:
            return  # what else is wrong is said of each sample
        if count > self.max_length:
            listed = getattr(self.prompt, "listed", None) or len(self.label_names)
            raise DataError(
                f"A question that lists {listed} classes does not fit into max_length "
                f"{self.max_length}: it has "
                f"{count:,} tokens besides those of the picture. {FEWER_CLASSES}",
                TOO_LONG,
            )

    def bound_text(self, sample: Sample) -> int | None:
        """Return an upper bound of the tokens of a sample's text, or None if it is not known."""
        with name_sample_errors(sample):
            return self._encoder.bound(self._ask(sample))

    def check_and_bound(self, sample: Sample) -> tuple[tuple[Turn, ...], int | None]:
        """Return a sample's turns as `check_turns` does, and the bound of `bound_text`."""
        dialogue = self._ask(sample)
        turns = self._check_dialogue(dialogue, sample)
        with name_sample_errors(sample):
            return turns, self._encoder.bound(dialogue)

    def check(self, sample: Sample) -> int:
        """Make a batch of one sample, to see whether it can be made, and return its `end_id`.

        Raises:
            DataError: It can't, or the sample does not fit.
            CheckpointError: The chat template alters a text.
        """
        self.check_template(sample)
        return self([(0, sample)]).end_id

    def check_template(self, sample: Sample) -> None:
        """Check that the chat template writes a sample's own texts unchanged.

        Raises:
            CheckpointError: It alters one.
        """
        with name_sample_errors(sample):
            self.renderer.check(self._ask(sample), sample.id)

    def check_turns(self, sample: Sample) -> tuple[Turn, ...]:
        """Return a sample's turns, after checks that need no tokenizer.

        Raises:
            DataError: A text has a special token in it, the prompt does not take such turns, or
                the last question does not name the sample's options.
            CheckpointError: The chat template can't write such turns.
            ConfigError: The chat template refuses them.
        """
        return self._check_dialogue(self._ask(sample), sample)

    def _check_dialogue(self, dialogue: Dialogue, sample: Sample) -> tuple[Turn, ...]:
        self._encoder.check_text(dialogue.system, sample.id)
        for turn in dialogue.turns:
            self._encoder.check_text(turn.text, sample.id)
            self._encoder.check_text(turn.instruction, sample.id)
        self.renderer.check_shape(dialogue)
        questions = [turn for turn in dialogue.turns if turn.role == "user" and turn.text]
        if sample.options and questions:
            find_options(put_images_first_in_turn(questions[-1]).text, sample.options, sample.id)
        return dialogue.turns

    @property
    def renderer(self) -> Renderer:
        """Writes conversations as text, as the chat template does."""
        return self._encoder.renderer

    def shows_a_box(self, sample: Sample, size: Size) -> bool:
        """Return whether any patch of a sample's picture of a size shows a part of its boxes.

        Raises:
            DataError: It is not known which patches show what for this family.
        """
        count = self.find_image_text(size).features
        return bool(self._regions.find_shown(sample, size, count).any())

    def find_image_text(self, size: Size) -> PictureText:
        """Return what stands for a picture of a size in the text."""
        return self._reader.find_text(size)

    def count_views(self, size: Size) -> int:
        """Return how many views the processor makes of a picture of a size."""
        return self._reader.count_views(size)

    def label_set(self, sample: Sample) -> LabelSet:
        """Return the class names with the tokens that each has after a sample's prompt.

        Raises:
            DataError: A class name has more tokens than `max_length`.
        """
        token_ids = []
        for name in self.label_names:
            # a prompt with this name alone: with all names in each it would take C x C
            dialogue = self.prompt.dialogue(replace(sample, label=name), (name,), epoch=0)
            images = [self._reader.example] * len(sample.images)
            encoded = self._encoder.encode(dialogue, sample.id, images)
            ids = encoded.answer_ids
            if len(ids) >= self.max_length:
                raise DataError(
                    f"The class name {name[:60]!r}... has {len(ids)} tokens, but the context ends "
                    f"at {self.max_length}. Shorten the name."
                )
            token_ids.append(ids)
        return LabelSet(self.label_names, tuple(token_ids))

    def _ask(self, sample: Sample, epoch: int = 0) -> Dialogue:
        """Return the conversation that the prompt makes of a sample."""
        dialogue = self.prompt.dialogue(sample, self.label_names, epoch)
        check_family_limits(dialogue, sample.id, self.processor)
        return dialogue

    def _encode(self, sample: Sample, epoch: int, pictures: list[Picture]) -> BatchRow:
        """Return the part of a sample that fits, with one token per visual feature."""
        images = [picture.text for picture in pictures]
        fitted = self._fitter.fit(self._ask(sample, epoch), sample, images)
        if fitted is None:
            raise DataError(
                f"No exchange of sample {sample.id!r} fits into max_length {self.max_length} with "
                "the pictures that it is about. Raise max_length, shorten its last question, or "
                "leave it out."
            )
        kept = pictures[fitted.images :]
        tokens = self._expand_images(fitted, sample, kept)
        answer = self._encode_answer_forms(fitted.dialogue, sample) if sample.kind else None
        return BatchRow(sample, tokens, kept, answer)

    def _expand_images(
        self, fitted: Fitted, sample: Sample, pictures: Sequence[Picture]
    ) -> EncodedSample:
        """Repeat the tokens of each picture, and cut off what is too long."""
        counts = [picture.text.features for picture in pictures]
        regions = self._regions.find_masks(sample, [picture.size for picture in pictures], counts)
        runs = chain.from_iterable(picture.text.runs for picture in pictures)
        tokens = fitted.tokens.expand_images([*runs], regions)
        return tokens.truncate(len(tokens) - fitted.excess) if fitted.excess else tokens

    def _encode_answer_forms(self, dialogue: Dialogue, sample: Sample) -> AnswerForms:
        """Return the tokens of the last answer, and of the wrong option, in both cases."""
        true = self._encode_forms(dialogue.turns[-1].text, dialogue, sample)
        if sample.options is None:
            return AnswerForms(true, None)
        return AnswerForms(true, self._encode_forms(sample.options.false, dialogue, sample))

    def _encode_forms(self, word: str, dialogue: Dialogue, sample: Sample) -> Forms:
        """Return the tokens of a word as the last answer, in lower case and capitalised."""
        tokens = []
        for answer in (word.lower(), word.capitalize()):
            turns = (*dialogue.turns[:-1], Turn("assistant", answer))
            asked = replace(dialogue, turns=turns)
            example = self._reader.example
            tokens.append(self._encoder.encode_answer(asked, sample.id, example))
        return Forms(*tokens)

    def _find_target(self, sample: Sample) -> int:
        """Return the index of a sample's class, or -1 where there are no classes."""
        if sample.label is None or not self.label_names:
            return -1
        if sample.label not in self._targets:
            raise DataError(
                f"The label {sample.label!r} of sample {sample.id!r} is none of the "
                f"{len(self.label_names)} classes."
            )
        return self._targets[sample.label]
