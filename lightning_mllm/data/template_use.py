"""What the conversations of a split ask of the checkpoint's chat template, and whether it does that."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightning_mllm.data.collator import Collator
from lightning_mllm.data.splits import Split
from lightning_mllm.data.turns import has_image_within
from lightning_mllm.types import Sample, Turn

logger = logging.getLogger(__name__)


class TemplateUse:
    """Looks at each conversation once, and runs the template on the texts of some.

    Those are the one of most turns, and for each word that the template itself quotes ("</think>", at which it may cut
    a text) the first in which that word occurs.
    """

    def __init__(self, collator: Collator) -> None:
        self._collator = collator
        self._quoting: dict[str, int] = {}
        self._most_turns = (0, 0)  # number and index
        self._moved = 0  # turns whose images stand within the text
        self._moved_in = ""

    def look_at(self, index: int, sample: Sample, turns: Sequence[Turn]) -> None:
        """Note what the turns of a sample need."""
        self._most_turns = max(self._most_turns, (len(turns), -index))
        for turn in turns:
            for word in self._collator.renderer.quoted.findall(turn.text):
                self._quoting.setdefault(word, index)
            if turn.places and has_image_within(turn):
                self._moved += 1
                self._moved_in = self._moved_in or sample.id

    def check(self, samples: Sequence[Sample], split: Split) -> None:
        """Run the template, and warn of images whose place it does not keep.

        Raises:
            CheckpointError: The template alters a text.
        """
        tried = {-self._most_turns[1], *self._quoting.values()} if self._most_turns[0] else ()
        for index in sorted(tried):
            self._collator.check_template(samples[index])
        if self._moved and not self._collator.renderer.keeps_places:
            logger.warning(
                "In %d turns of the %r split (the first is in sample %r) images stand within the text, but the "
                "checkpoint's chat template writes all images of a turn before its text, and so are they given to the "
                "model. Use a template that keeps the order of a turn's parts if their places matter.",
                self._moved,
                split,
                self._moved_in,
            )
