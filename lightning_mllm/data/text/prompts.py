"""What is asked about a sample: from a `Sample` to the turns of a conversation.

A prompt knows words, not tokens: the checkpoint's chat template decides how a conversation is
written for a model (`rendering.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lightning_mllm.data.text.turns import strip_turn
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.store.seeds import python_random
from lightning_mllm.types import Sample, Turn

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA3_SYSTEM = (  # LLaVA-NeXT's on Llama 3
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_LISTING = "Classify the image into one of the following categories of {task}: {classes}."
_NOT_LISTING = "Classify the image into one of the categories of {task}."
SHORT_ANSWER = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Dialogue:
    """A conversation, ready to be written as text for a model.

    Attributes:
        turns: Turns of user and assistant in alternation; the last is the assistant's.
        system: System text; empty for none.
        plain: Whether it is written without the chat template: images, answer, newline.
        joint: What stands between a question and its instruction.
        cue: What follows the chat template's prompt, right before an answer.
    """

    turns: tuple[Turn, ...]
    system: str = ""
    plain: bool = False
    joint: str = "\n"
    cue: str = ""


class Prompt(ABC):
    """Makes the conversation of a sample.

    Attributes:
        asks_for_label: Whether the answer is the sample's label, so that classes can be scored.
    """

    asks_for_label: ClassVar[bool] = True

    @abstractmethod
    def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
        """Return the conversation of a sample, its answer included.

        Args:
            sample: The sample that the conversation is about.
            label_names: All class names; empty where there are none.
            epoch: The epoch of training; prompts that vary by epoch take it into their seed.

        Raises:
            DataError: The sample lacks what this prompt needs.
        """

    def seeded(self, seed: int) -> Prompt:
        """Return this prompt with the data's seed, if it draws anything and has no seed itself."""
        return self


@dataclass(frozen=True, kw_only=True)
class ClassificationPrompt(Prompt):
    """Asks for one of the class names, which the question lists in quotes by default.

    The order of the list is drawn for each sample and epoch from (`seed`, epoch, sample id). So no
    class owes its score to its place in the list, and all processes draw the same order.

    Attributes:
        task: What the classes are, e.g. "plant leaf diseases".
        lists_classes: Whether the question lists the class names. Without the list the model has
            to learn what they are, and a prompt is shorter by most of its tokens; `question` then
            has no field {classes}, and by default none.
        listed: How many class names a question lists: the right one, and others that are drawn for
            each sample and epoch as the order is; by default all. An answer is then a choice among
            so many, and easier than one among all classes.
        shuffle: Whether to shuffle the list; otherwise it stands in the order of the classes.
        seed: Seed of the shuffled orders; by default the seed of the data.
        system: System text, e.g. `VICUNA_SYSTEM`. By default there is none: Hugging Face's LLaVA
            templates have none of their own.
        question: Sentence with the fields {task} and {classes}.
        instruction: What follows the question: the form of the answer, and a cue.
    """

    task: str = "objects"
    lists_classes: bool = True
    listed: int | None = None
    shuffle: bool = True
    seed: int | None = None
    system: str | None = None
    question: str = _LISTING
    instruction: str = "Answer with the name of one category and nothing else.\n\nOutput:"

    def __post_init__(self) -> None:
        if not self.lists_classes and self.question == _LISTING:
            object.__setattr__(self, "question", _NOT_LISTING)
        if self.listed is not None and (self.listed < 2 or not self.lists_classes):
            raise ConfigError(
                f"The prompt's listed is {self.listed} and lists_classes is {self.lists_classes}. "
                "To list some of the classes, set listed to 2 or more and lists_classes to true; "
                "to list none, leave listed out."
            )
        try:
            self.question.format(task=self.task, classes="")
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"The prompt's question {self.question!r} has a field that is neither {{task}} nor "
                f"{{classes}} ({error}). Write literal braces twice."
            ) from error
        if self.lists_classes != ("{classes}" in self.question):
            lacks, setting = ("lacks", "true") if self.lists_classes else ("has", "false")
            raise ConfigError(
                f"The prompt's question {self.question!r} {lacks} {{classes}}, where the names are "
                f"listed, but lists_classes is {setting}. Change one of them."
            )

    def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
        """Return question and label as one exchange."""
        if sample.label is None:
            raise DataError(
                f"Sample {sample.id!r} has no label, which ClassificationPrompt asks for. "
                "Use ConversationPrompt for data that brings its own conversations.",
                "label",
            )
        names = self.class_order(sample, label_names, epoch)
        classes = ", ".join(f'"{name}"' for name in names)
        question = self.question.format(task=self.task, classes=classes)
        user = Turn("user", question.strip(), self.instruction.strip(), images=len(sample.images))
        return Dialogue((user, Turn("assistant", sample.label)), self.system or "")

    def seeded(self, seed: int) -> Prompt:
        """See `Prompt.seeded`."""
        return self if self.seed is not None else replace(self, seed=seed)

    def class_order(self, sample: Sample, label_names: Sequence[str], epoch: int) -> list[str]:
        """Return the class names in the order in which a sample's question lists them."""
        names = list(label_names)
        if self.listed is not None and self.listed < len(names):
            others = [name for name in names if name != sample.label]
            draw = python_random(self.seed or 0, epoch, sample.id, "listed")
            drawn = {sample.label, *draw.sample(others, self.listed - 1)}
            names = [name for name in names if name in drawn]
        if self.shuffle:
            python_random(self.seed or 0, epoch, sample.id).shuffle(names)
        return names


@dataclass(frozen=True, kw_only=True)
class ConversationPrompt(Prompt):
    """Takes the sample's own conversation.

    Attributes:
        system: System text of samples that have none of their own; none by default.
        instruction: What follows each question that has no instruction of its own, e.g.
            `SHORT_ANSWER`.
        joint: What stands between a question and its instruction.
        cue: What follows the chat template's prompt, right before an answer.
    """

    asks_for_label: ClassVar[bool] = False

    system: str | None = None
    instruction: str = ""
    joint: str = "\n"
    cue: str = ""

    def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
        """Return the sample's conversation."""
        _check_places(sample)
        turns = tuple(map(self._complete_turn, sample.conversation))
        _check_turns(sample, turns)
        system = self.system if sample.system is None else sample.system
        return Dialogue(turns, system or "", joint=self.joint, cue=self.cue)

    def _complete_turn(self, turn: Turn) -> Turn:
        """Return a turn without blanks around it, and a question with its instruction."""
        instruction = turn.instruction.strip()
        if turn.role == "user" and turn.text.strip():
            instruction = instruction or self.instruction.strip()
        stripped = strip_turn(turn)
        if instruction == stripped.instruction:
            return stripped
        return replace(stripped, instruction=instruction)


@dataclass(frozen=True, kw_only=True)
class PlainPrompt(Prompt):
    """Asks nothing: the image, the answer and a newline, as in the pre-training stage of LLaVA.

    The code released with the projection study trains the projection on this (its script leaves
    LLaVA's `plain` conversation on, which discards the prompt). Evaluation asks with another
    prompt.
    """

    def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
        """Return the images and the label, or the conversation's last answer."""
        if sample.label is None:
            _check_turns(sample, tuple(sample.conversation))
            answer = sample.conversation[-1].text.strip()
        else:
            answer = sample.label
        user = Turn("user", "", images=len(sample.images))
        return Dialogue((user, Turn("assistant", answer)), plain=True)


def _check_places(sample: Sample) -> None:
    """Refuse places of images that are not one per image, in order and within the text."""
    for number, turn in enumerate(sample.conversation, 1):
        places = turn.places
        if not places:
            continue
        is_ordered = len(places) == turn.images and list(places) == sorted(places)
        if not is_ordered or places[0] < 0 or places[-1] > len(turn.text):
            raise DataError(
                f"The places of the {turn.images} images in turn {number} of sample {sample.id!r} "
                f"are {places}; they must be one per image, in order, within its "
                f"{len(turn.text)} characters."
            )


def _check_turns(sample: Sample, turns: tuple[Turn, ...]) -> None:
    """Refuse turns that do not alternate, are empty, or have other images than the sample."""
    roles = [turn.role for turn in turns]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(
            f"The turns of sample {sample.id!r} are {roles or 'missing'}; user and assistant must "
            "alternate, beginning with the user and ending with the assistant.",
            "turns",
        )
    empty = [k for k, turn in enumerate(turns, 1) if _is_empty(turn)]
    empty += [k for k, turn in enumerate(turns, 1) if turn.role == "assistant" and not turn.text]
    if empty:
        raise DataError(
            f"Turn {empty[0]} of sample {sample.id!r} is empty. Give it a text or remove the "
            "exchange.",
            "turns",
        )
    images = sum(turn.images for turn in turns)
    if images != len(sample.images):
        raise DataError(
            f"The turns of sample {sample.id!r} have {images} image placeholders, but the sample "
            f"has {len(sample.images)} images. There must be one placeholder per image.",
            "placeholders",
        )


def _is_empty(turn: Turn) -> bool:
    return not (turn.text or turn.instruction or turn.images)
