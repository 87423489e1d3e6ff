"""The words that every package shares: samples, labels, segments and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from PIL import Image

IGNORE_INDEX = -100  # label of a position without loss, as in torch's `cross_entropy`
# which token types a model's forward takes
TokenTypes = Literal["image", "mm image", "suffix"]


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
    IMAGE_FRAME = "image frame"  # text between visual tokens: row breaks, names of tiles
    IMAGE_OBJECT = "image object"  # patches that show a part of one of the sample's boxes
    IMAGE_OTHER = "image other"  # all other patches of the image, with padding, without newlines
    IMAGE_RANDOM = "image random"  # control: as many others per view as IMAGE_OBJECT, no padding
    IMAGE_DISTRACTOR = "image distractor"  # control in one piece: patches of other objects
    IMAGE_DISTRACTORS = "image distractors"  # patches that show a part of any other object
    IMAGE_PADDING = "image padding"  # patches of nothing but the bars beside a picture
    IMAGE_NEWLINE = "image newline"  # LLaVA-NeXT's separators, after each row of its tiles
    IMAGE_BASE = "image base"  # the view that is the whole picture; without tiles all of the image
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
        content: A text that pictures of equal bytes have in common; None where it is not known.
    """

    size: tuple[int, int]
    draw: Callable[[], Image.Image]
    content: str | None = None


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
        fields: Further text and numbers about the sample, by name: what probes can read (`targets`
            and `numbers` of ProbeEachEpoch). The model never sees them.
        partner: Id of the sample of the same split that is this one with one thing changed: an
            attribute in the picture, or a word of the question. What a pair differs in can be
            patched from one into the other. Only one of the two names the other.
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
    fields: Mapping[str, str | float] = field(default_factory=dict)
    partner: str | None = None


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


Table = Mapping[str, NDArray[Any]]  # column -> (rows,)
