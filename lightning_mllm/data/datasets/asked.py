"""Pictures without answers: asked as a run's data ask about theirs, or asked a question."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lightning_mllm.data.datasets.folder_samples import IMAGE_SUFFIXES, OTHER_SUFFIXES
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.sample_checks import list_sample_labels
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.labels import collect_labels
from lightning_mllm.data.text.prompts import (
    ClassificationPrompt,
    ConversationPrompt,
    Dialogue,
    Prompt,
)
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample, Turn

_NO_ANSWER = "?"  # stands where a batch has an answer; no prompt depends on it
# options of the run's data that decide what the model gets
_KEPT = (
    *("geometry", "max_length", "long_answers", "split_special_tokens", "padding_side"),
    *("seed", "eval_batch_size", "num_workers"),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QuestionPrompt(Prompt):
    """Asks one question about every sample; the answer is the sample's class, if it has one.

    Attributes:
        question: The question.
        conversation: Says how it is written: system text, instruction, joint and cue.
    """

    question: str
    conversation: ConversationPrompt

    def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
        """Return question and class as one exchange."""
        user = Turn("user", self.question, images=len(sample.images))
        turns = (user, Turn("assistant", sample.label or _NO_ANSWER))
        return self.conversation.dialogue(replace(sample, conversation=turns), (), epoch)


class AskedPictures(MLLMDataModule):
    """Samples without answers, as the split `test`.

    Args:
        asked: The samples; they have neither label nor conversation.
        classes: The classes that are scored, with which no sample is labelled; empty for none.
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    splits: ClassVar[tuple[Split, ...]] = ("test",)

    def __init__(self, *, asked: Sequence[Sample], classes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = collect_labels(classes)
        # a sample has an answer; the prompt ends before it
        label = self.classes[0] if self.classes else None
        self._asked = [replace(sample, label=label) for sample in asked]

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples."""
        return self._asked

    def make_collators(self, first: Sequence[Sample]) -> None:
        """Make the collators with all classes."""
        labelled = [replace(first[0], label=name) for name in self.classes]
        super().make_collators(labelled or first)


def ask_about_samples(
    asked: Sequence[Sample],
    source: tuple[str, str | None, bool],
    data: MLLMDataModule | None = None,
    question: str | None = None,
    classes: Sequence[str] = (),
) -> AskedPictures:
    """Return samples that are asked as a run's data ask about theirs, or asked a question.

    Args:
        asked: The samples; they have neither label nor conversation.
        source: The model's checkpoint, its revision, and whether its code is trusted.
        data: The data of the run; None if there is no run.
        question: What is asked; by default what the run's data ask, or for one of the classes.
        classes: The classes that are scored; by default those of the run's data if they ask for
            them.

    Raises:
        ConfigError: There is no question and nothing that could be asked for, or a single class to
            choose from.
        DataError: The run's data can't be read.
    """
    if len(set(classes)) == 1:
        raise ConfigError(
            f"There is one class to choose from, {classes[0]!r}. Name two or more: --classes "
            f"{shlex.quote(classes[0])} other."
        )
    own = None if data is None else data.prompt
    if question is None and getattr(own, "listed", None) is not None:
        raise ConfigError(
            "The run's prompt lists some of the classes, the right one among them, which is not "
            "known of these pictures. Write a question, or set the prompt's listed to null."
        )
    if question is None:
        classes = classes or _find_classes(data)
        prompt = own if own is not None and own.asks_for_label else ClassificationPrompt()
        asked = _name_like_data(asked, data)
    else:
        text = ConversationPrompt(system=getattr(own, "system", None))
        conversation = own if isinstance(own, ConversationPrompt) else text
        prompt = QuestionPrompt(question=question, conversation=conversation)
    checkpoint, revision, trusted = source
    options = {} if data is None else {name: getattr(data, name) for name in _KEPT}
    return AskedPictures(
        asked=asked,
        classes=classes,
        prompt=prompt,
        checkpoint=checkpoint,
        revision=revision,
        trust_remote_code=trusted,
        **options,
    )


def list_asked_pictures(folder: Path) -> list[Sample]:
    """Return a sample per picture in a folder and its subfolders, sorted, named by its path.

    Raises:
        DataError: There is no such folder, no picture in it, or one in a format that is not read.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {found}. Name a folder of pictures: --images FOLDER.")
    files: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden:
            suffix = path.suffix.lower()
            (files if suffix in IMAGE_SUFFIXES else others).append(path)
    unread = [path for path in others if path.suffix.lower() in OTHER_SUFFIXES]
    if unread:
        raise DataError(
            f"{len(unread)} pictures in {folder} are in formats that are not read (e.g. "
            f"{unread[0]}). Convert them, or move them away."
        )
    if files and others:
        logger.warning(
            "%d files in %s are not pictures and are ignored (e.g. %s)",
            len(others),
            folder,
            others[0],
        )
    if not files:
        raise DataError(
            f"{folder} has no picture in it. Expected files such as .jpg or .png, there or in "
            "folders within it."
        )
    return [Sample(id=path.relative_to(folder).as_posix(), images=[path]) for path in files]


def _find_classes(data: MLLMDataModule | None) -> Sequence[str]:
    """Return the classes that a run's data ask for."""
    asks = data is not None and (data.prompt is None or data.prompt.asks_for_label)
    labels: list[str] = []
    if data is not None and asks:
        labels = list(list_sample_labels(data.load_split(data.splits[0])))
    if not labels:
        raise ConfigError(
            'There is no question. Write one, e.g. "What is this?", or name the classes to '
            "choose from (--classes cat dog); a run that was trained on classes (--config "
            "runs/<name>/config.yaml) asks its own."
        )
    return labels


def _name_like_data(asked: Sequence[Sample], data: MLLMDataModule | None) -> list[Sample]:
    """Give pictures of the run's data the ids that they have there: an order is drawn by the id."""
    ids: dict[Path, str] = {}
    if data is None:
        return list(asked)
    for split in data.splits:
        with suppress(DataError):  # a split that is not there has none of the pictures
            for sample in data.load_split(split):
                if len(sample.images) == 1 and isinstance(sample.images[0], Path):
                    ids.setdefault(sample.images[0].resolve(), sample.id)
    named = []
    for sample in asked:
        image = sample.images[0] if len(sample.images) == 1 else None
        known = ids.get(image.resolve()) if isinstance(image, Path) else None
        named.append(replace(sample, id=known or sample.id))
    return named
