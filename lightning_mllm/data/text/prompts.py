"""What is asked about a sample: from a `Sample` to the turns of a conversation.

A prompt knows words, not tokens: how a conversation is written for a model is up to the checkpoint's chat template
(`rendering.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lightning_mllm.data.text.turns import strip
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.store.seeds import python_random
from lightning_mllm.types import Sample, Turn

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAMA3_SYSTEM = (  # LLaVA-NeXT's on Llama 3
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
SHORT_ANSWER = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Dialogue:
    """A conversation, ready to be written out for a model.

    Attributes:
        turns: Users' and assistant's turns in alternation; the last is the assistant's.
        system: System text; empty for none.
        plain: Written without the chat template: images, answer, newline.
        joint: What stands between a question and its instruction.
        cue: What stands behind the chat template's prompt, right before an answer.
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
            sample: The sample.
            label_names: All class names; empty where there are none.
            epoch: Prompts that vary by epoch take it into their seed.

        Raises:
            DataError: The sample lacks what this prompt needs.
        """

    def seeded(self, seed: int) -> Prompt:
        """Return this prompt with the seed of the data, if it draws anything and has no seed of its own."""
        return self


@dataclass(frozen=True, kw_only=True)
class ClassificationPrompt(Prompt):
    """Asks for one of the class names, which the question lists in quotes, unless it is told not to.

    The order of the list is drawn anew for each sample and epoch from (`seed`, epoch, sample id), so that no class owes
    its score to its place, and any process draws the same order.

    Attributes:
        task: What the classes are, e.g. "plant leaf diseases".
        lists_classes: Whether the question lists the class names. Without the list the model has to learn what they
            are; a prompt is shorter then by most of its tokens.
        shuffle: Whether to reorder the list; else it stands in the order of the classes.
        seed: Seed of the orders; by default that of the data.
        system: System text, e.g. `VICUNA_SYSTEM`; Hugging Face's LLaVA templates have none of their own.
        question: Sentence with the fields {task} and {classes}.
        instruction: What follows the question: the form of the answer, and a cue.
    """

    task: str = "objects"
    lists_classes: bool = True
    shuffle: bool = True
    seed: int | None = None
    system: str | None = None
    question: str = "Classify the image into one of the following categories of {task}: {classes}."
    instruction: str = "Answer with the name of one category and nothing else.\n\nOutput:"

    def __post_init__(self) -> None:
        try:
            self.question.format(task=self.task, classes="")
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"The prompt's question {self.question!r} has a field that is neither {{task}} nor {{classes}} "
                f"({error}). Write literal braces twice."
            ) from error
        if self.lists_classes != ("{classes}" in self.question):
            lacks, setting = ("lacks", "true") if self.lists_classes else ("has", "false")
            raise ConfigError(
                f"The prompt's question {self.question!r} {lacks} {{classes}}, where the names are listed, but "
                f"lists_classes is {setting}. Change one of them."
            )

    def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
        """Return question and label as one exchange."""
        if sample.label is None:
            raise DataError(
                f"Sample {sample.id!r} has no label, which ClassificationPrompt asks for. "
                "Use ConversationPrompt for data that brings its own conversations.",
                "label",
            )
        classes = ", ".join(f'"{name}"' for name in self.class_order(sample, label_names, epoch))
        question = self.question.format(task=self.task, classes=classes)
        user = Turn("user", question.strip(), self.instruction.strip(), images=len(sample.images))
        return Dialogue((user, Turn("assistant", sample.label)), self.system or "")

    def seeded(self, seed: int) -> Prompt:
        """See `Prompt.seeded`."""
        return self if self.seed is not None else replace(self, seed=seed)

    def class_order(self, sample: Sample, label_names: Sequence[str], epoch: int) -> list[str]:
        """Return the class names in the order in which a sample's question lists them."""
        names = list(label_names)
        if self.shuffle:
            python_random(self.seed or 0, epoch, sample.id).shuffle(names)
        return names


@dataclass(frozen=True, kw_only=True)
class ConversationPrompt(Prompt):
    """Takes the sample's own conversation.

    Attributes:
        system: System text of samples that have none of their own; none by default.
        instruction: What follows each question that has no instruction of its own, e.g. `SHORT_ANSWER`.
        joint: What stands between a question and its instruction.
        cue: What stands behind the chat template's prompt, right before an answer.
    """

    asks_for_label: ClassVar[bool] = False

    system: str | None = None
    instruction: str = ""
    joint: str = "\n"
    cue: str = ""

    def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
        """Return the sample's conversation."""
        _check_places(sample)
        turns = tuple(map(self._completed, sample.conversation))
        _check_turns(sample, turns)
        system = self.system if sample.system is None else sample.system
        return Dialogue(turns, system or "", joint=self.joint, cue=self.cue)

    def _completed(self, turn: Turn) -> Turn:
        instruction = turn.instruction.strip()
        if turn.role == "user" and turn.text.strip():
            instruction = instruction or self.instruction.strip()
        return replace(strip(turn), instruction=instruction)


@dataclass(frozen=True, kw_only=True)
class PlainPrompt(Prompt):
    """No question at all: the image, the answer and a newline, as in the pre-training stage of LLaVA.

    This is what the code released with the projection study trains the projection on (its script leaves LLaVA's
    `plain` conversation on, which discards the prompt). Evaluation asks with another prompt.
    """

    def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
        """Return the images and the label, or the conversation's last answer."""
        if sample.label is None:
            _check_turns(sample, tuple(sample.conversation))
        answer = sample.conversation[-1].text.strip() if sample.label is None else sample.label
        return Dialogue((Turn("user", "", images=len(sample.images)), Turn("assistant", answer)), plain=True)


def _check_places(sample: Sample) -> None:
    for number, turn in enumerate(sample.conversation, 1):
        places = turn.places
        if places and (
            len(places) != turn.images or [*places] != sorted(places) or places[0] < 0 or places[-1] > len(turn.text)
        ):
            raise DataError(
                f"The places of the {turn.images} images in turn {number} of sample {sample.id!r} are {places}; they "
                f"must be one per image, in order, within its {len(turn.text)} characters."
            )


def _check_turns(sample: Sample, turns: tuple[Turn, ...]) -> None:
    roles = [turn.role for turn in turns]
    if not roles or len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(
            f"The turns of sample {sample.id!r} are {roles or 'missing'}; user and assistant must alternate, beginning "
            "with the user and ending with the assistant.",
            "turns",
        )
    empty = [k for k, turn in enumerate(turns, 1) if not (turn.text or turn.instruction or turn.images)]
    empty += [k for k, turn in enumerate(turns, 1) if turn.role == "assistant" and not turn.text]
    if empty:
        problem = f"Turn {empty[0]} of sample {sample.id!r} is empty. Give it a text or remove the exchange."
        raise DataError(problem, "turns")
    if sum(turn.images for turn in turns) != len(sample.images):
        raise DataError(
            f"The turns of sample {sample.id!r} have {sum(turn.images for turn in turns)} image placeholders, but the "
            f"sample has {len(sample.images)} images. There must be one placeholder per image.",
            "placeholders",
        )
