"""What of a conversation fits into the context: whole exchanges from its end, or nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_mllm.data.loading.bad_rows import TOO_LONG
from lightning_mllm.data.text.encoding import EncodedSample, Encoder
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample, Segment

LongAnswers = Literal["raise", "leave_out", "truncate"]


@dataclass(frozen=True)
class Fitted:
    """What is left of a sample.

    Attributes:
        dialogue: Its last exchanges.
        tokens: Theirs; each image is still one token.
        exchanges: How many exchanges before them are left out.
        images: How many images are left out with them.
        excess: How many tokens too long the last answer still is, and is to be cut at its end.
    """

    dialogue: Dialogue
    tokens: EncodedSample
    exchanges: int = 0
    images: int = 0
    excess: int = 0


class Fitter:
    """Makes conversations fit.

    Args:
        encoder: Of the checkpoint.
        max_length: Most tokens of a sample, those of its images included.
        long_answers: What happens to a sample whose last answer, with images and instruction, does not fit even without
            its question: an error, or the sample is left out, or the answer is cut at its end and so has no end token.
        classes: How many classes the answers are; of such samples nothing is left out.
    """

    def __init__(self, encoder: Encoder, max_length: int, long_answers: LongAnswers, classes: int) -> None:
        if long_answers not in ("raise", "leave_out", "truncate"):
            raise ConfigError(f"long_answers is {long_answers!r}; it can be 'raise', 'leave_out' or 'truncate'.")
        self._encoder, self._max_length = encoder, max_length
        self._long_answers, self._classes = long_answers, classes

    def fit(self, dialogue: Dialogue, sample: Sample, image_tokens: Sequence[int]) -> Fitted | None:
        """Return as many of the last exchanges as fit, or None where the sample is to be left out.

        It is where the question of the last exchange is too long, or where no image would be left of some: what is said
        of an image can't be learnt without it.

        Args:
            dialogue: The sample's.
            sample: The sample.
            image_tokens: How many tokens each image takes.

        Raises:
            DataError: The last answer does not fit and `long_answers` is `raise`, or it is to be cut but has a kind; or
                the answers are classes.
        """
        exchanges = len(dialogue.turns) // 2

        def suffix(first: int) -> tuple[Fitted, int]:
            turns = dialogue.turns
            gone = sum(turn.images for turn in turns[: 2 * first])
            rest = replace(dialogue, turns=turns[2 * first :])
            tokens = self._encoder.encode(rest, sample.id, len(image_tokens) - gone, sample.options)
            excess = len(tokens) + sum(count - 1 for count in image_tokens[gone:]) - self._max_length
            return Fitted(rest, tokens, first, gone), excess

        fitted, excess = suffix(0)
        if excess > 0 and exchanges > 1:
            first = bisect_left(range(1, exchanges - 1), True, key=lambda number: suffix(number)[1] <= 0) + 1
            fitted, excess = suffix(first)
        if excess > 0:
            return self._without_room(fitted, sample, excess)
        return None if fitted.images == len(image_tokens) > 0 else fitted

    def _without_room(self, fitted: Fitted, sample: Sample, excess: int) -> Fitted | None:
        """Return what becomes of a last exchange that is too long."""
        question, answer = (int(fitted.tokens.masks[name].sum()) for name in (Segment.QUESTION, Segment.ANSWER))
        if self._classes:
            raise DataError(
                f"The question of sample {sample.id!r}, which lists {self._classes} classes, does not fit into "
                f"max_length {self._max_length} with its images and answer: they have {self._max_length + excess} "
                "tokens. Raise max_length, use shorter class names, or a checkpoint with a longer context.",
                TOO_LONG,
            )
        if question >= excess or self._long_answers == "leave_out":
            return None
        can_truncate = sample.kind is None and answer > excess
        if self._long_answers == "truncate" and can_truncate:
            return None if fitted.images and fitted.images == len(sample.images) else replace(fitted, excess=excess)
        options = "leave_out or truncate" if can_truncate else "leave_out"
        raise DataError(
            f"Sample {sample.id!r} has {self._max_length + excess} tokens ({question} of its last question, {answer} "
            f"of its last answer, the rest of images, instruction and system text), but max_length is "
            f"{self._max_length}, and its last answer does not fit. Raise max_length, shorten the answer, or set "
            f"`long_answers` to {options}.",
            TOO_LONG,
        )
