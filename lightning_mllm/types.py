"""The vocabulary that every package shares: samples, token spans and batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

IGNORE_INDEX = -100  # label of a position that carries no loss, as in torch.nn.functional.cross_entropy


class Segment(StrEnum):
    """A named set of token positions in the merged sequence of text and image tokens."""

    TEXT = "text"  # all that is no image: "image->text" in all layers hides the picture altogether
    SYSTEM = "system"
    IMAGE = "image"
    QUESTION = "question"
    INSTRUCTION = "instruction"
    ANSWER = "answer"  # the answer and its end-of-turn token: the positions that carry loss
    LAST = "last"  # the one position whose logits give the first token of the (last) answer
    SUFFIX = "suffix"  # between the last question and LAST: instruction and role tokens, a way around them
    IMAGE_OBJECT = "image object"  # patches that show a part of one of the sample's boxes
    IMAGE_OTHER = "image other"  # all other patches of the image; padding is among them, newlines are not
    IMAGE_RANDOM = "image random"  # as many of the others as IMAGE_OBJECT has, padding avoided, per view: its control
    IMAGE_DISTRACTOR = "image distractor"  # patches of other objects than IMAGE_OBJECT: a control in one piece
    IMAGE_PADDING = "image padding"  # patches that show nothing but the bars beside a picture that is not square
    IMAGE_NEWLINE = "image newline"  # LLaVA-NeXT's separators, at the end of each row of its tiles
    IMAGE_BASE = "image base"  # LLaVA-NeXT's first view, the whole picture; without tiles all of the image
    IMAGE_TILES = "image tiles"  # the rest, newlines included
    TRUE_OPTION = "true option"  # where the question names the right one of its two options
    FALSE_OPTION = "false option"
    QUESTION_REST = "question rest"  # the question without its options


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; its instruction stands behind its text.

    Attributes:
        places: Per image, how many characters of the text stand before it; without, all images stand first.
    """

    role: Literal["user", "assistant"]
    text: str
    instruction: str = ""
    images: int = 0
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class LazyImage:
    """A picture that is made when it is needed.

    Attributes:
        size: (width, height) in pixels.
        draw: Makes the picture, the same each time.
    """

    size: tuple[int, int]
    draw: Callable[[], Image.Image]


@dataclass(frozen=True)
class Box:
    """A rectangle in a picture, in pixels of the picture as it is stored."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Options:
    """The two answers between which a question lets choose, as it names them."""

    true: str
    false: str


@dataclass(frozen=True)
class Forms:
    """The tokens of a word behind the prompt, the end of the turn not included: "red" and "Red"."""

    lower: tuple[int, ...]
    capitalised: tuple[int, ...]


@dataclass(frozen=True)
class AnswerForms:
    """How the right answer of a question begins, and the wrong one of its options, where it has options."""

    true: Forms
    false: Forms | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a dataset gives: an image (or several, or none) with a label or a conversation.

    Attributes:
        id: Unique within its split; errors and prediction tables name it.
        images: Image files, PIL images or lazy ones, in the order of their placeholders.
        label: Class name, for classification; the DataModule's prompt then asks the question.
        conversation: Turns that end with the assistant's, for free-form data.
        system: System text of the conversation, in place of the prompt's.
        kind: Kind of question; a free-form sample that has one is scored by exact match of its last answer, per kind.
        boxes: What the (last) question is about, in the sample's only image.
        distractors: Other objects in it, to compare with.
        options: The options that the (last) question names.
        picture: Which picture the (last) question is about, where several samples may be about one, so that what is
            found of them is not independent.
    """

    id: str
    images: Sequence[Path | Image.Image | LazyImage] = ()
    label: str | None = None
    conversation: Sequence[Turn] = ()
    system: str | None = None
    kind: str | None = None
    boxes: Sequence[Box] = ()
    distractors: Sequence[Box] = ()
    options: Options | None = None
    picture: str | None = None


@dataclass(frozen=True)
class LabelSet:
    """The closed set of answers of a classification task.

    Attributes:
        names: Class names as the prompt shows them; a target is an index into this tuple.
        token_ids: Per class, the tokens of its answer behind the prompt, end-of-turn token included.
    """

    names: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)


@dataclass(frozen=True)
class TokenSpans:
    """Segment -> bool mask of shape (batch, sequence); masks, so padding, gaps and several images just work."""

    masks: Mapping[Segment, Tensor]

    def __getitem__(self, segment: Segment) -> Tensor:
        """Return the mask of a segment, of shape (batch, sequence)."""
        return self.masks[segment]

    def take(self, index: Tensor, valid: Tensor) -> TokenSpans:
        """Re-order positions: mask[b, i] becomes mask[b, index[b, i]] where `valid`, else False."""
        return TokenSpans({segment: mask.gather(1, index) & valid for segment, mask in self.masks.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenSpans:
        """Apply a function to every mask."""
        return TokenSpans({segment: function(mask) for segment, mask in self.masks.items()})


@dataclass(frozen=True, kw_only=True)
class MultimodalBatch:
    """A padded batch, ready for the model.

    Attributes:
        input_ids: (batch, sequence), image placeholders already expanded to one token per visual feature.
        attention_mask: (batch, sequence), 1 at real tokens.
        labels: (batch, sequence), the token id at positions that carry loss, `IGNORE_INDEX` elsewhere (not shifted).
        spans: Where the segments are.
        targets: (batch,) class indices, -1 where a sample has no label.
        sample_ids: Per sample.
        pictures: Per sample, which picture it is about: its own id where the data does not say.
        kinds: Per sample, its kind of question, if it has one.
        answers: Per sample, the forms of its (last) answer, if it has a kind.
        vision: What the family's image processor makes (`pixel_values`, `image_sizes`, ...), images first; empty
            without images.
        image_counts: Images of each sample, in the order in which `vision` has them.
        pad_id: Token that fills padding.
        end_id: Token that ends an answer.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    spans: TokenSpans
    targets: Tensor
    sample_ids: tuple[str, ...]
    pictures: tuple[str, ...]
    kinds: tuple[str | None, ...]
    answers: tuple[AnswerForms | None, ...]
    vision: Mapping[str, Tensor]
    image_counts: tuple[int, ...]
    pad_id: int
    end_id: int

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.sample_ids)

    @property
    def position_ids(self) -> Tensor:
        """(batch, sequence): 0 at each sample's first real token, whichever side the padding is on."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of the model's forward, labels left out."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
            **self.vision,
        }

    def prompts(self) -> MultimodalBatch:
        """Return the batch cut behind each sample's LAST position and padded on the left, ready for generation."""
        length = self.input_ids.shape[1]
        positions = torch.arange(length, device=self.input_ids.device)
        last = self.spans[Segment.LAST].int().argmax(dim=1)  # (batch,)
        index = positions + (last - length + 1)[:, None]  # right-aligns LAST
        kept = self.attention_mask.gather(1, index.clamp(min=0)).bool() & (index >= 0)
        width = int(kept.sum(dim=1).max())  # left padding: the widest prompt fills the columns from -width on
        index, kept = index.clamp(min=0)[:, -width:], kept[:, -width:]
        return replace(
            self,
            input_ids=self.input_ids.gather(1, index).where(kept, self.pad_id),
            attention_mask=kept.to(self.attention_mask.dtype),
            labels=torch.full_like(index, IGNORE_INDEX),
            spans=self.spans.take(index, kept),
        )

    def take(self, rows: Sequence[int]) -> MultimodalBatch:
        """Return some of the samples, padded as the whole is; consecutive ones are views, not copies."""
        first = list(accumulate(self.image_counts, initial=0))
        images = _index([image for row in rows for image in range(first[row], first[row + 1])])
        texts = replace(self, vision={})._map(itemgetter(_index(rows)))
        return replace(
            texts,
            sample_ids=tuple(self.sample_ids[row] for row in rows),
            pictures=tuple(self.pictures[row] for row in rows),
            kinds=tuple(self.kinds[row] for row in rows),
            answers=tuple(self.answers[row] for row in rows),
            image_counts=tuple(self.image_counts[row] for row in rows),
            vision={name: value[images] for name, value in self.vision.items()} if images else {},
        )

    def split(self, size: int) -> list[MultimodalBatch]:
        """Return the batch in pieces of at most `size` samples, padded as the whole is."""
        return [self.take(range(start, min(start + size, len(self)))) for start in range(0, len(self), size)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MultimodalBatch:
        """Move all tensors."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MultimodalBatch:
        """Pin all tensors."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> MultimodalBatch:
        return replace(
            self,
            input_ids=function(self.input_ids),
            attention_mask=function(self.attention_mask),
            labels=function(self.labels),
            spans=self.spans.map(function),
            targets=function(self.targets),
            vision={name: function(value) for name, value in self.vision.items()},
        )


def _index(numbers: Sequence[int]) -> slice | list[int]:
    """Return what picks these numbers, in order; empty for none."""
    if not numbers:
        return []
    span = range(numbers[0], numbers[-1] + 1)
    return slice(span.start, span.stop) if list(numbers) == list(span) else list(numbers)


Table = Mapping[str, NDArray[Any]]  # column -> (rows,)
