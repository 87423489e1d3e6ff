"""Whether the checkpoint's chat template writes the conversations of a split as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError

from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.text.turns import has_image_within_turn
from lightning_mllm.types import Sample, Turn

# replaces the function that tells the day
_NO_DATE = "{% macro strftime_now(format) %}{{ '' }}{% endmacro %}"

logger = logging.getLogger(__name__)

_MARKS: dict[str, Callable[[str], bool]] = {  # what a template can't alter where it is not there
    "small letters": lambda text: text != text.upper(),
    "capitals": lambda text: text != text.lower(),
    "line breaks": lambda text: "\n" in text,
    "wide blanks": lambda text: "  " in text,
    "other scripts": lambda text: not text.isascii(),
}


class TemplateCheck:
    """Looks at each conversation once, and runs the template on the texts of some.

    These are: the conversation of most turns; the longest text of each role; the first text with
    each word that the template itself quotes ("</think>", at which it may cut a text); and the
    first text with capitals, line breaks and the like, per role.

    Args:
        collator: Makes the batches of the split.
    """

    def __init__(self, collator: Collator) -> None:
        self._collator = collator
        self._quoting: dict[str, int] = {}  # word -> index
        self._most_turns = (0, 0)  # number and negative index
        self._longest: dict[str, tuple[int, int]] = {}  # role -> characters and negative index
        self._marked: set[int] = set()  # the first with each mark, per role
        self._unmarked: dict[str, dict[str, Callable[[str], bool]]] = {}  # role -> marks to come
        self._moved = 0  # turns whose images stand within the text
        self._moved_in = ""  # the first sample with such a turn

    def look_at(self, index: int, sample: Sample, turns: Sequence[Turn]) -> None:
        """Note what the turns of a sample need from the template."""
        self._most_turns = max(self._most_turns, (len(turns), -index))
        for turn in turns:
            length = len(turn.text), -index
            self._longest[turn.role] = max(self._longest.get(turn.role, length), length)
            unmarked = self._unmarked.setdefault(turn.role, dict(_MARKS))
            for mark in [mark for mark, occurs in unmarked.items() if occurs(turn.text)]:
                del unmarked[mark]
                self._marked.add(index)
            for word in self._collator.renderer.template.quoted.findall(turn.text):
                self._quoting.setdefault(word, index)
            if turn.places and has_image_within_turn(turn):
                self._moved += 1
                self._moved_in = self._moved_in or sample.id

    def check(self, samples: Sequence[Sample], split: Split) -> None:
        """Run the template, and warn of images whose place it does not keep.

        Raises:
            CheckpointError: The template alters a text.
        """
        chosen = {*self._quoting.values(), *self._marked}
        if self._most_turns[0]:
            most = [self._most_turns, *self._longest.values()]
            chosen |= {-negative for _, negative in most}
        for index in sorted(chosen):
            self._collator.check_template(samples[index])
        if self._moved and not self._collator.renderer.keeps_places:
            logger.warning(
                "In %d turns of the %r split (the first is in sample %r) images stand within the "
                "text, but the checkpoint's chat template writes all images of a turn before its "
                "text, and the model gets them in this order. Use a template that keeps the order "
                "of a turn's parts if their places matter.",
                self._moved,
                split,
                self._moved_in,
            )


def check_template_date(processor: CheckpointProcessor, checkpoint: str) -> None:
    """Warn of a chat template that writes the day's date, which changes what the model reads."""
    content: Any = [{"type": "text", "text": "a"}]
    system, user = {"role": "system", "content": content}, {"role": "user", "content": content}
    template = processor.chat_template
    for messages in ([user], [system, user]):
        try:
            with_date = processor.tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
            without = processor.tokenizer.apply_chat_template(
                messages,
                chat_template=_NO_DATE + template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except TemplateError:  # it takes no system text
            continue
        if with_date != without:
            logger.warning(
                "The chat template of %r writes today's date, so that losses and scores change "
                "with the day. Put a fixed date in its place (`strftime_now` in "
                "chat_template.jinja) to compare runs.",
                checkpoint,
            )
            return
