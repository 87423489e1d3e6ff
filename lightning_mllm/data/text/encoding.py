"""From rendered text to token ids and segment masks, located by character offsets and checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.pictures import PictureText
from lightning_mllm.data.text.encoded_sample import EncodedSample
from lightning_mllm.data.text.options import find_option_spans
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.rendering import RenderedSpan, RenderedText, Renderer
from lightning_mllm.data.text.special_tokens import (
    build_special_token_pattern,
    describe_special,
    find_special_token_ids,
    needs_special_bos,
    tokenise_special_quotes,
)
from lightning_mllm.data.text.token_bound import TokenBound, decode_all, is_same_text
from lightning_mllm.errors import CheckpointError, DataError
from lightning_mllm.types import Options, Segment

Masks = dict[Segment, Tensor]  # segment -> bool mask of shape (length,)


class Encoder:
    """Tokenises conversations for one checkpoint.

    Args:
        processor: The processor of the checkpoint.
        split_special_tokens: Whether a text may quote special tokens ("<s>"), which are then read
            as text.

    Attributes:
        renderer: Writes conversations as text.

    Raises:
        CheckpointError: The tokenizer appends special tokens, which would separate an answer from
            its end.
    """

    def __init__(
        self, processor: CheckpointProcessor, *, split_special_tokens: bool = False
    ) -> None:
        self._may_quote = split_special_tokens
        self._tokenizer: Any = processor.tokenizer
        self.renderer = Renderer(processor)
        self._feature_id = processor.feature_token_id
        names = (processor.placeholder, processor.feature_token)
        special = {self._feature_id, self._tokenizer.convert_tokens_to_ids(names[0])}
        special |= find_special_token_ids(self._tokenizer)
        self._special_ids = torch.tensor(sorted(special))
        self._special_pattern = build_special_token_pattern(self._tokenizer, *names)
        with_special = self._tokenizer.encode("a", add_special_tokens=True)
        without = self._tokenizer.encode("a", add_special_tokens=False)
        if with_special[-1] != without[-1]:
            raise CheckpointError(
                f"The tokenizer ({type(self._tokenizer).__name__}) appends token "
                f"{with_special[-1]} to every text, but the end of an answer is written with the "
                "answer. Switch it off (add_eos_token: false)."
            )

    def encode(
        self,
        dialogue: Dialogue,
        sample_id: str,
        images: Sequence[PictureText],
        options: Options | None = None,
    ) -> EncodedSample:
        """Tokenise a conversation; each run of visual tokens is still one, without its regions.

        Args:
            dialogue: The conversation to tokenise.
            sample_id: What errors call it.
            images: What stands for each of its images.
            options: The options that the last question names, if any.

        Raises:
            CheckpointError: An answer does not end with a special token, so generation would not
                know where to stop.
            DataError: A text contains a special token, a segment's tokens do not decode to its
                text, the last question does not name the options, or the tokens of the prompt
                change with the answer after it.
        """
        rendered = self.renderer.render(dialogue, [image.text for image in images])
        if len(rendered.images) != len(images):
            raise DataError(
                f"Sample {sample_id!r} has {len(images)} images, but its conversation has "
                f"{len(rendered.images)} image tokens once it is written as text. There must be "
                "one per image; use a checkpoint whose chat template writes them."
            )
        input_ids, offsets = self._tokenise(rendered)
        masks = {segment: torch.zeros_like(input_ids, dtype=torch.bool) for segment in Segment}
        self._mark_texts(masks, rendered, (input_ids, offsets), sample_id)
        self._mark_options(masks, rendered, (input_ids, offsets), options, sample_id)
        for span in rendered.answers:
            covered = _cover(offsets, span)
            masks[Segment.ANSWER] |= covered
            if not dialogue.plain:
                self._check_end(rendered.text[span.start : span.end], input_ids[covered])
        self._mark_images_and_last(masks, rendered, (input_ids, offsets), sample_id)
        return EncodedSample(sample_id, input_ids, masks, int(input_ids[-1]))

    def bound(self, dialogue: Dialogue) -> int | None:
        """Return an upper bound of a conversation's tokens without its images; None if unknown."""
        rendered = self.renderer.render(dialogue)
        if self._quotes_special(rendered, len(rendered.text)):
            return None
        return self._token_bound.bound(rendered.text)

    def encode_answer(
        self, dialogue: Dialogue, sample_id: str, image: PictureText
    ) -> tuple[int, ...]:
        """Return the tokens of the (last) answer without the end of its turn, unchecked.

        Args:
            dialogue: The conversation to tokenise.
            sample_id: What errors call it.
            image: What stands for each image; the answer may follow it directly.

        Raises:
            DataError: The tokens of the prompt change with the answer after it.
        """
        images = [image.text] * sum(turn.images for turn in dialogue.turns)
        rendered = self.renderer.render(dialogue, images)
        input_ids, offsets = self._tokenise(rendered)
        start = self._measure_prompt(rendered, input_ids, sample_id)
        last = int(_cover(offsets, rendered.slots[-1]).nonzero()[-1])
        return tuple(input_ids[start : last + 1].tolist())

    def check_text(self, text: str, sample_id: str) -> None:
        """Refuse a text with a special token in it, unless it may quote them.

        Raises:
            DataError: The text has a special token in it.
        """
        if self._may_quote:
            return
        found = self._special_pattern.search(text)
        if found:
            problem = describe_special(f"A text of sample {sample_id!r}", found.group(), text)
            raise DataError(problem, "special token")

    @cached_property
    def _token_bound(self) -> TokenBound:
        return TokenBound(self._tokenizer)

    def _mark_texts(
        self,
        masks: Masks,
        rendered: RenderedText,
        tokens: tuple[Tensor, Tensor],
        sample_id: str,
    ) -> None:
        """Mark the tokens of system text, questions and instructions, and check all texts.

        A token on the border of two texts belongs to the first.
        """
        input_ids, offsets = tokens
        free = torch.ones_like(input_ids, dtype=torch.bool)
        for span in rendered.slots:
            covered = _cover(offsets, span) & free
            free &= ~covered
            self._check_slot(rendered, span, input_ids[covered], sample_id)
            if span.segment is not Segment.ANSWER:
                masks[span.segment] |= covered
            if span.segment is Segment.QUESTION:
                masks[Segment.SUFFIX] = torch.arange(len(input_ids)) > covered.nonzero()[-1]

    def _mark_options(
        self,
        masks: Masks,
        rendered: RenderedText,
        tokens: tuple[Tensor, Tensor],
        options: Options | None,
        sample_id: str,
    ) -> None:
        """Mark the tokens of the options in the last question, and those of the rest of it."""
        input_ids, offsets = tokens
        rest = masks[Segment.QUESTION].clone()
        for span in find_option_spans(rendered, options, sample_id):
            covered = _cover(offsets, span) & masks[Segment.QUESTION]
            self._check_slot(rendered, span, input_ids[covered], sample_id)
            masks[span.segment] |= covered
            rest &= ~covered
        masks[Segment.QUESTION_REST] = rest

    def _mark_images_and_last(
        self,
        masks: Masks,
        rendered: RenderedText,
        tokens: tuple[Tensor, Tensor],
        sample_id: str,
    ) -> None:
        """Mark images, all other tokens as text, and the position that predicts the last answer."""
        input_ids, offsets = tokens
        texts = torch.zeros_like(input_ids, dtype=torch.bool)
        for span in rendered.slots:
            texts |= _cover(offsets, span)
        for span in rendered.images:
            masks[Segment.IMAGE_FRAME] |= _cover(offsets, span) & ~texts
        masks[Segment.IMAGE] = masks[Segment.IMAGE_FRAME] & (input_ids == self._feature_id)
        masks[Segment.IMAGE_FRAME] &= ~masks[Segment.IMAGE]
        masks[Segment.TEXT] = ~masks[Segment.IMAGE]
        last = self._measure_prompt(rendered, input_ids, sample_id) - 1
        masks[Segment.LAST][last] = True
        # an image may follow the question
        masks[Segment.SUFFIX] &= masks[Segment.TEXT] & ~masks[Segment.IMAGE_FRAME]
        masks[Segment.SUFFIX][last:] = False

    def _tokenise(self, rendered: RenderedText) -> tuple[Tensor, Tensor]:
        """Return token ids (n,) and their character ranges (n, 2)."""
        text = rendered.text
        if self._quotes_special(rendered, len(text)):
            return self._tokenise_quotes(rendered, len(text))
        encoding = self._tokenizer(
            text,
            add_special_tokens=needs_special_bos(self._tokenizer, text),
            return_offsets_mapping=True,
            verbose=False,
        )
        return torch.tensor(encoding["input_ids"]), torch.tensor(encoding["offset_mapping"])

    def _quotes_special(self, rendered: RenderedText, end: int) -> bool:
        """Return whether a text that ends by `end` quotes a special token."""
        if not self._may_quote:
            return False
        for span in rendered.slots:
            within = span.end <= end
            if within and self._special_pattern.search(rendered.text, span.start, span.end):
                return True
        return False

    def _tokenise_quotes(self, rendered: RenderedText, end: int) -> tuple[Tensor, Tensor]:
        """Do as `_tokenise` up to `end`, with the special tokens that texts quote read as text."""
        texts = [(span.start, span.end) for span in rendered.slots if span.end <= end]
        text = rendered.text[:end]
        return tokenise_special_quotes(self._tokenizer, self._special_pattern, text, texts)

    def _measure_prompt(self, rendered: RenderedText, input_ids: Tensor, sample_id: str) -> int:
        """Return how many tokens the (last) prompt has, and check that its answer changes none."""
        start = rendered.answers[-1].start
        prompt = rendered.text[:start]
        if self._quotes_special(rendered, start):
            alone = self._tokenise_quotes(rendered, start)[0].tolist()
        else:
            bos = needs_special_bos(self._tokenizer, prompt)
            encoding = self._tokenizer(prompt, add_special_tokens=bos, verbose=False)
            alone = encoding["input_ids"]
        if not alone or input_ids[: len(alone)].tolist() != alone:
            raise DataError(
                f"The prompt of sample {sample_id!r} has other tokens alone than with its answer "
                "after it, so generation would not continue what was trained. Its end is "
                f"{prompt[-40:]!r}, its answer begins {rendered.text[start:][:40]!r}. Use a prompt "
                "with another end.",
                "answer's start",
            )
        return len(alone)

    def _check_end(self, text: str, input_ids: Tensor) -> None:
        """Refuse an answer that does not end with a special token."""
        if not torch.isin(input_ids[-1], self._special_ids):
            token = self._tokenizer.convert_ids_to_tokens(int(input_ids[-1]))
            raise CheckpointError(
                f"The tokenizer ({type(self._tokenizer).__name__}) reads the end of the answer "
                f"{text[-40:]!r} as text (its last token is {token!r}), so generation would not "
                "know where to stop. Make its end-of-sequence token a special one (special: true, "
                "normalized: false in tokenizer.json)."
            )

    def _check_slot(
        self, rendered: RenderedText, span: RenderedSpan, input_ids: Tensor, sample_id: str
    ) -> None:
        """Refuse tokens that are special, or do not decode to the text of their span."""
        text = rendered.text[span.start : span.end]
        special = input_ids[torch.isin(input_ids, self._special_ids)]
        if len(special):
            token = self._tokenizer.convert_ids_to_tokens(int(special[0]))
            what = f"The {span.segment} of sample {sample_id!r}"
            raise DataError(describe_special(what, str(token), text))
        decoded = decode_all(self._tokenizer, input_ids)
        if not is_same_text(decoded, text):
            raise DataError(
                f"The tokens of the {span.segment} of sample {sample_id!r} decode to {decoded!r}, "
                f"not to {text!r}. Check the text for unusual characters; if there are none, this "
                "tokenizer's offsets can't be relied on.",
                "unusual characters",
            )


def _cover(offsets: Tensor, span: RenderedSpan) -> Tensor:
    """Return which tokens touch a span; tokens without characters (BOS) touch none."""
    starts, ends = offsets.unbind(dim=1)
    return (ends > starts) & (starts < span.end) & (ends > span.start)
