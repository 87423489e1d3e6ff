"""From rendered text to token ids and segment masks, located by character offsets and checked."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import ProcessorMixin

from lightning_mllm.data.text.options import find_options
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.rendering import RenderedText, Renderer, TextSpan
from lightning_mllm.data.text.special_tokens import special_ids, special_pattern, tokenise_quotes, wants_bos
from lightning_mllm.data.text.token_bound import TokenBound
from lightning_mllm.errors import CheckpointError, DataError
from lightning_mllm.types import Options, Segment

_OPTIONS = (Segment.TRUE_OPTION, Segment.FALSE_OPTION)


@dataclass(frozen=True)
class EncodedSample:
    """One sample's tokens.

    Attributes:
        id: The sample's.
        input_ids: (length,).
        masks: Segment -> bool mask of shape (length,).
        end_id: The token that ends its (last) answer.
    """

    id: str
    input_ids: Tensor
    masks: Mapping[Segment, Tensor]
    end_id: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The tokens behind the (last) prompt, end-of-turn token included."""
        last = int(self.masks[Segment.LAST].nonzero())
        return tuple(self.input_ids[last + 1 :].tolist())

    def take(self, source: Tensor) -> EncodedSample:
        """Return the tokens at the positions `source`, which may repeat."""
        masks = {name: mask[source] for name, mask in self.masks.items()}
        return EncodedSample(self.id, self.input_ids[source], masks, self.end_id)

    def expand_images(
        self, image_token_id: int, replacements: Sequence[Sequence[int]], regions: Mapping[Segment, Tensor]
    ) -> EncodedSample:
        """Put the k-th of `replacements` in the place of the k-th image token.

        Args:
            image_token_id: The token that stands for an image.
            replacements: Tokens of each image.
            regions: Segment -> mask over the image tokens of all `replacements`.
        """
        is_image = self.input_ids == image_token_id
        counts = torch.ones_like(self.input_ids)
        counts[is_image] = torch.tensor([len(ids) for ids in replacements], dtype=counts.dtype)
        source = torch.arange(len(self)).repeat_interleave(counts)
        expanded = self.take(source)
        inserted = [token for ids in replacements for token in ids]
        expanded.input_ids[is_image[source]] = torch.tensor(inserted, dtype=torch.long)
        last = torch.zeros_like(is_image[source])
        last[expanded.masks[Segment.LAST].nonzero()[-1]] = True  # without a question it is the last image token
        shown = expanded.input_ids == image_token_id
        changed = {Segment.IMAGE: shown, Segment.LAST: last}
        changed |= {segment: torch.zeros_like(shown).masked_scatter(shown, mask) for segment, mask in regions.items()}
        return replace(expanded, masks={**expanded.masks, **changed})

    def truncate(self, length: int) -> EncodedSample:
        """Return the first tokens, the end of the answer among those that are lost."""
        return self.take(torch.arange(length))


class Encoder:
    """Tokenises conversations for one checkpoint.

    Args:
        processor: The checkpoint's.
        split_special_tokens: Whether a text may quote special tokens ("<s>"), which are then read as text.

    Attributes:
        image_token_id: The token that stands for an image.
        renderer: Writes conversations out.

    Raises:
        CheckpointError: The tokenizer appends special tokens, which would part the answer from its end.
    """

    def __init__(self, processor: ProcessorMixin, *, split_special_tokens: bool = False) -> None:
        self._split = split_special_tokens
        self._tokenizer = processor.tokenizer
        self.renderer = Renderer(processor)
        self.image_token_id: int = self._tokenizer.convert_tokens_to_ids(self.renderer.image_token)
        self._special_ids = torch.tensor(sorted(special_ids(self._tokenizer) | {self.image_token_id}))
        self._special_pattern = special_pattern(self._tokenizer, self.renderer.image_token)
        with_special, bare = (self._tokenizer.encode("a", add_special_tokens=flag) for flag in (True, False))
        if with_special[-1] != bare[-1]:
            raise CheckpointError(
                f"The tokenizer ({type(self._tokenizer).__name__}) appends token {with_special[-1]} to every text, but "
                "the end of an answer is written with the answer. Switch it off (add_eos_token: false)."
            )

    def encode(self, dialogue: Dialogue, sample_id: str, images: int, options: Options | None = None) -> EncodedSample:
        """Tokenise a conversation; each image is still one token, and its regions are not told apart.

        Raises:
            CheckpointError: An answer does not end with a special token, so generation would not know where to stop.
            DataError: A text contains a special token, a segment's tokens do not decode to its text, the last question
                does not name the options, or the tokens of the prompt change with the answer behind it.
        """
        rendered = self.renderer.render(dialogue)
        input_ids, offsets = self._tokenise(rendered)
        masks = {segment: torch.zeros_like(input_ids, dtype=torch.bool) for segment in Segment}
        free = torch.ones_like(input_ids, dtype=torch.bool)
        slots = [*rendered.slots, *_option_places(rendered, options, sample_id)]
        for place in slots:
            within = free if place.segment not in _OPTIONS else masks[Segment.QUESTION]
            covered = _covered(offsets, place) & within  # a token on the border of two texts belongs to the first
            free &= ~covered
            self._check_slot(rendered.text[place.start : place.end], input_ids[covered], place.segment, sample_id)
            if place.segment is not Segment.ANSWER:
                masks[place.segment] |= covered
            if place.segment is Segment.QUESTION:
                masks[Segment.SUFFIX] = torch.arange(len(input_ids)) > covered.nonzero()[-1]
        for place in rendered.answers:
            covered = _covered(offsets, place)
            masks[Segment.ANSWER] |= covered
            if not dialogue.plain:
                self._check_end(rendered.text[place.start : place.end], input_ids[covered])
        masks[Segment.IMAGE] = input_ids == self.image_token_id
        masks[Segment.SUFFIX] &= ~masks[Segment.IMAGE]  # of an image that stands behind the question
        masks[Segment.TEXT] = ~masks[Segment.IMAGE]
        last = self._prompt_length(rendered, input_ids, sample_id) - 1
        masks[Segment.LAST][last] = True
        masks[Segment.SUFFIX][last:] = False
        masks[Segment.QUESTION_REST] = masks[Segment.QUESTION] & ~torch.stack([masks[name] for name in _OPTIONS]).any(0)
        if (found := int(masks[Segment.IMAGE].sum())) != images:
            raise DataError(
                f"Sample {sample_id!r} has {images} images, but its conversation has {found} image tokens once it is "
                "written out. There must be one per image; use a checkpoint whose chat template writes them."
            )
        return EncodedSample(sample_id, input_ids, masks, int(input_ids[-1]))

    def bound(self, dialogue: Dialogue) -> int | None:
        """Return the most tokens that a conversation can have, images aside; None if that is not known."""
        rendered = self.renderer.render(dialogue)
        return None if self._quotes(rendered, len(rendered.text)) else self._bound(rendered.text)

    @cached_property
    def _bound(self) -> TokenBound:
        return TokenBound(self._tokenizer)

    def answer_ids(self, dialogue: Dialogue, sample_id: str) -> tuple[int, ...]:
        """Return the tokens behind the (last) prompt, end-of-turn token included; nothing else is looked at.

        Raises:
            DataError: The tokens of the prompt change with the answer behind it.
        """
        rendered = self.renderer.render(dialogue)
        input_ids, _ = self._tokenise(rendered)
        return tuple(input_ids[self._prompt_length(rendered, input_ids, sample_id) :].tolist())

    def _tokenise(self, rendered: RenderedText) -> tuple[Tensor, Tensor]:
        """Return token ids (n,) and their character ranges (n, 2)."""
        text = rendered.text
        if self._quotes(rendered, len(text)):
            return self._tokenise_quotes(rendered, len(text))
        encoding = self._tokenizer(
            text, add_special_tokens=wants_bos(self._tokenizer, text), return_offsets_mapping=True, verbose=False
        )
        return torch.tensor(encoding["input_ids"]), torch.tensor(encoding["offset_mapping"])

    def _quotes(self, rendered: RenderedText, end: int) -> bool:
        """Return whether a text before `end` quotes a special token."""
        return self._split and any(
            self._special_pattern.search(rendered.text, slot.start, slot.end)
            for slot in rendered.slots
            if slot.end <= end
        )

    def _tokenise_quotes(self, rendered: RenderedText, end: int) -> tuple[Tensor, Tensor]:
        texts = [(slot.start, slot.end) for slot in rendered.slots if slot.end <= end]
        return tokenise_quotes(self._tokenizer, self._special_pattern, rendered.text[:end], texts)

    def _prompt_length(self, rendered: RenderedText, input_ids: Tensor, sample_id: str) -> int:
        start = rendered.answers[-1].start
        prompt = rendered.text[:start]
        if self._quotes(rendered, start):
            alone = self._tokenise_quotes(rendered, start)[0].tolist()
        else:
            bos = wants_bos(self._tokenizer, prompt)
            alone = self._tokenizer(prompt, add_special_tokens=bos, verbose=False)["input_ids"]
        if not alone or input_ids[: len(alone)].tolist() != alone:
            raise DataError(
                f"The prompt of sample {sample_id!r} has other tokens alone than with its answer behind it, so that "
                f"generation would not continue what was trained. Its end is {prompt[-40:]!r}, its answer begins "
                f"{rendered.text[len(prompt) :][:40]!r}. Use a prompt that ends otherwise.",
                "answer's start",
            )
        return len(alone)

    def check_text(self, text: str, sample_id: str) -> None:
        """Refuse a text with a special token in it, unless it may quote them, without tokenising it.

        Raises:
            DataError: There is one.
        """
        if not self._split and (found := self._special_pattern.search(text)):
            problem = _special_in_text(f"A text of sample {sample_id!r}", found.group(), text)
            raise DataError(problem, "special token")

    def _check_end(self, text: str, input_ids: Tensor) -> None:
        if not torch.isin(input_ids[-1], self._special_ids):
            token = self._tokenizer.convert_ids_to_tokens(int(input_ids[-1]))
            raise CheckpointError(
                f"The tokenizer ({type(self._tokenizer).__name__}) reads the end of the answer {text[-40:]!r} as text "
                f"(its last token is {token!r}), so generation would not know where to stop. Make its end-of-sequence "
                "token a special one (special: true, normalized: false in tokenizer.json)."
            )

    def _check_slot(self, text: str, input_ids: Tensor, segment: Segment, sample_id: str) -> None:
        special = input_ids[torch.isin(input_ids, self._special_ids)]
        if len(special):
            token = self._tokenizer.convert_ids_to_tokens(int(special[0]))
            raise DataError(_special_in_text(f"The {segment} of sample {sample_id!r}", str(token), text))
        decoded = self._tokenizer.decode(input_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if _plain(decoded) != _plain(text):
            raise DataError(
                f"The tokens of the {segment} of sample {sample_id!r} decode to {decoded!r}, not to {text!r}. "
                "Check the text for unusual characters; otherwise this tokenizer's offsets can't be relied on.",
                "unusual characters",
            )


def _special_in_text(what: str, token: str, text: str) -> str:
    return (
        f"{what} contains {token!r}, which the model reads as a special token, not as text: {text[:80]!r}. "
        "Remove or rewrite it, or set `split_special_tokens: true` if the text quotes it; images are placed by the "
        "sample's images."
    )


def _option_places(rendered: RenderedText, options: Options | None, sample_id: str) -> list[TextSpan]:
    """Return the places of the options in the last question; none where nothing is asked."""
    questions = [place for place in rendered.slots if place.segment is Segment.QUESTION]
    if options is None or not questions:
        return []
    end = questions[-1].end
    earlier = max((place.end for place in rendered.answers if place.end <= questions[-1].start), default=0)
    start = min(place.start for place in questions if place.start >= earlier)  # images may part a question
    found = find_options(rendered.text[start:end], options, sample_id)
    return [TextSpan(name, start + first, start + last) for name, (first, last) in zip(_OPTIONS, found, strict=True)]


def _covered(offsets: Tensor, place: TextSpan) -> Tensor:
    """Return which tokens touch a place; tokens without characters (BOS) touch none."""
    starts, ends = offsets.unbind(dim=1)
    return (ends > starts) & (starts < place.end) & (ends > place.start)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
