"""The words that every package shares: samples, token spans and batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate, chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

IGNORE_INDEX = -100  # label of a position without loss, as in torch's `cross_entropy`


class Segment(StrEnum):
    """A named set of token positions in the merged sequence of text and image tokens."""

    TEXT = "text"  # all that is not image: "image->text" in all layers hides the whole picture
    SYSTEM = "system"
    IMAGE = "image"
    QUESTION = "question"
    INSTRUCTION = "instruction"
    ANSWER = "answer"  # the answer and its end-of-turn token: the positions that carry loss
    LAST = "last"  # the one position whose logits give the first token of the (last) answer
    SUFFIX = "suffix"  # between the last question and LAST: instruction and role tokens
    IMAGE_OBJECT = "image object"  # patches that show a part of one of the sample's boxes
    IMAGE_OTHER = "image other"  # all other patches of the image, with padding, without newlines
    IMAGE_RANDOM = "image random"  # control: as many others per view as IMAGE_OBJECT, no padding
    IMAGE_DISTRACTOR = "image distractor"  # control in one piece: patches of other objects
    IMAGE_PADDING = "image padding"  # patches of nothing but the bars beside a picture
    IMAGE_NEWLINE = "image newline"  # LLaVA-NeXT's separators, after each row of its tiles
    IMAGE_BASE = "image base"  # LLaVA-NeXT's first view, the whole picture; else all of the image
    IMAGE_TILES = "image tiles"  # the rest of the image, newlines included
    TRUE_OPTION = "true option"  # where the question names the right one of its two options
    FALSE_OPTION = "false option"
    QUESTION_REST = "question rest"  # the question without its options


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        text: What is said.
        instruction: How to answer; it follows the text.
        images: Number of images in the turn.
        places: Per image, how many characters of the text come before it; if empty, all images come
            first.
    """

    role: Literal["user", "assistant"]
    text: str
    instruction: str = ""
    images: int = 0
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class LazyImage:
    """A picture that is drawn when it is needed.

    Attributes:
        size: (width, height) in pixels.
        draw: Draws the picture, the same each time.
    """

    size: tuple[int, int]
    draw: Callable[[], Image.Image]


@dataclass(frozen=True)
class Box:
    """A rectangle in a picture, in pixels of the stored picture."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Options:
    """The two answers that a question offers, in its own words."""

    true: str
    false: str


@dataclass(frozen=True)
class Forms:
    """The tokens of a word after the prompt, without the end of the turn: "red" and "Red"."""

    lower: tuple[int, ...]
    capitalised: tuple[int, ...]


@dataclass(frozen=True)
class AnswerForms:
    """How the right answer to a question begins, and its wrong option, if it has options."""

    true: Forms
    false: Forms | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample of a dataset: images, or none, with a label or a conversation.

    Attributes:
        id: Unique within its split; errors and prediction tables name it.
        images: Image files, PIL images or lazy images, in the order of their placeholders.
        label: Class name, for classification; the DataModule's prompt then asks the question.
        conversation: Turns that end with one of the assistant, for free-form data.
        system: System text of the conversation, in place of the prompt's.
        kind: Kind of question; a free-form sample that has one is scored by exact match of its last
            answer, per kind.
        boxes: What the (last) question is about, in the sample's only image.
        distractors: Other objects in the image, as a control.
        options: The options that the (last) question names.
        picture: Which picture the (last) question is about. Samples about one picture are not
            independent.
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
        token_ids: Per class, the tokens of its answer after the prompt, end-of-turn token included.
    """

    names: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class TokenSpans:
    """Segment -> bool mask of shape (batch, sequence), so that a segment may have gaps."""

    masks: Mapping[Segment, Tensor]

    def __getitem__(self, segment: Segment) -> Tensor:
        return self.masks[segment]

    def take(self, index: Tensor, valid: Tensor) -> TokenSpans:
        """Reorder positions: mask[b, i] becomes mask[b, index[b, i]] where `valid`, else False."""
        return self.map(lambda mask: mask.gather(1, index) & valid)

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenSpans:
        """Apply a function to every mask."""
        return TokenSpans({segment: function(mask) for segment, mask in self.masks.items()})


@dataclass(frozen=True, kw_only=True)
class MultimodalBatch:
    """A padded batch, ready for the model.

    Attributes:
        input_ids: (batch, sequence), image placeholders already expanded to one token per visual
            feature.
        attention_mask: (batch, sequence), 1 at real tokens.
        labels: (batch, sequence), not shifted: the token id at positions that carry loss,
            `IGNORE_INDEX` elsewhere.
        spans: Where the segments are.
        targets: (batch,) class indices, -1 where a sample has no label.
        sample_ids: Id of each sample.
        pictures: Per sample, which picture it is about; the sample's id if the data does not say.
        kinds: Per sample, its kind of question, or None.
        answers: Per sample, the forms of its (last) answer; None without a kind.
        vision: Output of the family's image processor (`pixel_values`, `image_sizes`, ...), with
            images in the first dimension; empty without images.
        image_counts: Number of images of each sample, in the order of `vision`.
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
        return len(self.sample_ids)

    @property
    def position_ids(self) -> Tensor:
        """(batch, sequence): 0 at each sample's first real token, on whichever side padding is."""
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
        """Return the prompts: cut after each sample's LAST position, padded on the left."""
        length = self.input_ids.shape[1]
        positions = torch.arange(length, device=self.input_ids.device)
        last = self.spans[Segment.LAST].int().argmax(dim=1)  # (batch,)
        index = positions + (last - length + 1)[:, None]  # right-aligns LAST
        kept = self.attention_mask.gather(1, index.clamp(min=0)).bool() & (index >= 0)
        width = int(kept.sum(dim=1).max())  # of the longest prompt, which ends in the last column
        index, kept = index.clamp(min=0)[:, -width:], kept[:, -width:]
        return replace(
            self,
            input_ids=self.input_ids.gather(1, index).where(kept, self.pad_id),
            attention_mask=kept.to(self.attention_mask.dtype),
            labels=torch.full_like(index, IGNORE_INDEX),
            spans=self.spans.take(index, kept),
        )

    def take(self, rows: Sequence[int]) -> MultimodalBatch:
        """Return some of the samples, padded as the batch is; consecutive ones are views."""
        first = list(accumulate(self.image_counts, initial=0))
        images = [*chain.from_iterable(range(first[row], first[row + 1]) for row in rows)]
        vision = {name: value[_index(images)] for name, value in self.vision.items() if images}
        texts = replace(self, vision={})._map(itemgetter(_index(rows)))
        return replace(
            texts,
            sample_ids=tuple(self.sample_ids[row] for row in rows),
            pictures=tuple(self.pictures[row] for row in rows),
            kinds=tuple(self.kinds[row] for row in rows),
            answers=tuple(self.answers[row] for row in rows),
            image_counts=tuple(self.image_counts[row] for row in rows),
            vision=vision,
        )

    def split(self, size: int) -> list[MultimodalBatch]:
        """Return the batch in pieces of at most `size` samples, padded as the batch is."""
        rows = range(len(self))
        return [self.take(rows[start : start + size]) for start in rows[::size]]

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
    """Return an index that selects these numbers in order: a slice if they are consecutive."""
    if not numbers:
        return []
    span = range(numbers[0], numbers[-1] + 1)
    return slice(span.start, span.stop) if list(numbers) == list(span) else list(numbers)


Table = Mapping[str, NDArray[Any]]  # column -> (rows,)
