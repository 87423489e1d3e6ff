"""From a conversation to the text that the model reads, with the place of each segment in it.

The chat template runs once per *shape* of conversation, on numbered slots instead of texts. The
texts are then put into their slots. So every place is known: nothing is searched for, and no text
can be mistaken for another. `Renderer.check` tries on some samples whether the template writes
texts unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.text.chat_messages import (
    ChatMessages,
    MessageText,
    Piece,
    build_messages,
    fill_message_slots,
    split_message_at_slots,
)
from lightning_mllm.data.text.chat_template import ChatTemplate, TemplateExchange
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.data.text.turns import put_images_first_in_turn
from lightning_mllm.errors import CheckpointError
from lightning_mllm.types import Segment, Turn

_SHOWN = 40  # characters that a message quotes


class RenderedSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of a rendered text, and their segment."""

    segment: Segment
    start: int
    end: int


@dataclass(frozen=True)
class RenderedText:
    """A conversation as text.

    Attributes:
        text: The text, with what stands for each image in it; no BOS unless the template writes it.
        slots: Exactly where the texts of system, question, instruction and answer are.
        answers: Where each answer carries loss: from the end of its prompt to the end of its
            end-of-turn token.
        images: Where what stands for each image is.
    """

    text: str
    slots: tuple[RenderedSpan, ...]
    answers: tuple[RenderedSpan, ...]
    images: tuple[RenderedSpan, ...]


class Renderer:
    """Writes conversations as text for one checkpoint.

    Attributes:
        template: The checkpoint's chat template.
        placeholder: What the template writes for an image.
    """

    def __init__(self, processor: CheckpointProcessor) -> None:
        self.template = ChatTemplate(processor)
        self.placeholder = processor.placeholder
        self._layouts: dict[ChatMessages, tuple[TemplateExchange, ...]] = {}
        self._checked_shapes: set[tuple[object, ...]] = set()

    @cached_property
    def keeps_places(self) -> bool:
        """Whether the template writes an image where it stands in the text.

        Many templates write a turn's images first.

        Raises:
            ConfigError: The template refuses such a turn.
        """
        probe = Dialogue((Turn("user", "a b", images=1, places=(1,)), Turn("assistant", "c")))
        question = build_messages(probe)[0].to_list()[:1]
        written = split_message_at_slots(self.template.run(question, add_generation_prompt=True))
        if 1 not in written or 2 not in written:
            return False
        between = written[written.index(1) + 1 : written.index(2)]
        return len(between) == 1 and str(between[0]).count(self.placeholder) == 1

    def render(self, dialogue: Dialogue, images: Sequence[str] = ()) -> RenderedText:
        """Write a conversation as text, with the k-th of `images` for the k-th image.

        Without `images`, the placeholders of the template stay.

        If the template drops or repeats the system text, and turns open with plain words
        ("USER:"), the system text is put before the first turn, followed by a blank. If the
        template does not keep the places of images, they stand first in their turn.

        Raises:
            CheckpointError: The chat template rewrites earlier turns, or drops or repeats a text.
            ConfigError: The chat template refuses the conversation, e.g. its system text.
        """
        layout, texts = self._lay_out(dialogue)
        writer = _Writer(texts, self.placeholder, images)
        answers: list[RenderedSpan] = []
        for exchange in layout:
            writer.write(exchange.opening)
            start = len(writer.text)
            writer.write(exchange.answer)
            answers.append(RenderedSpan(Segment.ANSWER, start, len(writer.text)))
        return RenderedText(writer.text, tuple(writer.slots), tuple(answers), tuple(writer.images))

    def check_shape(self, dialogue: Dialogue) -> None:
        """Check that the template writes conversations of this shape; each shape is tried once.

        Raises:
            CheckpointError: The chat template rewrites earlier turns, or drops or repeats a text.
            ConfigError: The chat template refuses the conversation.
        """
        turns = tuple(
            (turn.role, turn.images, turn.places, bool(turn.text), bool(turn.instruction))
            for turn in dialogue.turns
        )
        shape = bool(dialogue.system), turns
        if shape not in self._checked_shapes:
            self._lay_out(dialogue)
            self._checked_shapes.add(shape)

    def check(self, dialogue: Dialogue, sample_id: str) -> None:
        """Run the template on the texts themselves, to see whether it writes them unchanged.

        Raises:
            CheckpointError: It changes a text.
        """
        if dialogue.plain:
            return
        messages, texts = build_messages(self._place_images(dialogue))
        with_slots, with_texts = messages.to_list(), messages.to_list(texts)
        for end, message in enumerate(with_slots, 1):
            asks = message["role"] == "user"
            expected = fill_message_slots(self.template.run(with_slots[:end], asks), texts)
            written = self.template.run(with_texts[:end], asks)
            if written != expected:
                found, wanted = quote_rendering_difference(written, expected, _SHOWN)
                raise CheckpointError(
                    f"The checkpoint's chat template alters the texts of sample {sample_id!r}: it "
                    f"writes {found!r} where {wanted!r} was expected. Use a template that writes "
                    "texts as they are, or remove from the texts what it alters."
                )

    def _lay_out(
        self, dialogue: Dialogue
    ) -> tuple[tuple[TemplateExchange, ...], list[MessageText]]:
        """Return the exchanges of a conversation, and the texts of their slots."""
        messages, texts = build_messages(self._place_images(dialogue))
        if dialogue.plain:
            images = self.placeholder * dialogue.turns[0].images
            return (TemplateExchange((images,), (len(texts) - 1, "\n")),), texts
        if messages not in self._layouts:
            self._layouts[messages] = self.template.lay_out(messages)
        return self._layouts[messages], texts

    def _place_images(self, dialogue: Dialogue) -> Dialogue:
        """Put images first in their turns, unless the template keeps their places."""
        if not any(turn.places for turn in dialogue.turns) or self.keeps_places:
            return dialogue
        return replace(dialogue, turns=tuple(map(put_images_first_in_turn, dialogue.turns)))


def quote_rendering_difference(first: str, second: str, shown: int) -> tuple[str, str]:
    """Return `shown` characters of each text, around the first place where they differ."""
    common = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        common += 1
    start = max(common - shown // 2, 0)
    return first[start : start + shown], second[start : start + shown]


class _Writer:
    """Writes pieces of a template, slots filled and images replaced, and notes where these are."""

    def __init__(
        self, texts: Sequence[MessageText], placeholder: str, images: Sequence[str]
    ) -> None:
        self.text = ""
        self.slots: list[RenderedSpan] = []
        self.images: list[RenderedSpan] = []
        self._texts, self._placeholder, self._replacements = texts, placeholder, images

    def write(self, pieces: Sequence[Piece]) -> None:
        """Add pieces at the end of the text."""
        for piece in pieces:
            if isinstance(piece, int):
                filled = self._texts[piece]
                self.slots.append(self._add(filled.segment, filled.words))
                continue
            first, *others = piece.split(self._placeholder)
            self.text += first
            for other in others:
                self.images.append(self._add(Segment.IMAGE, self._next_image()))
                self.text += other

    def _next_image(self) -> str:
        number = len(self.images)
        known = number < len(self._replacements)
        return self._replacements[number] if known else self._placeholder

    def _add(self, segment: Segment, words: str) -> RenderedSpan:
        start = len(self.text)
        self.text += words
        return RenderedSpan(segment, start, len(self.text))
