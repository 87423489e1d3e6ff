"""How much of a conversation fits into the context: its last exchanges, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_mllm.data.images.pictures import PictureText
from lightning_mllm.data.loading.bad_rows import TOO_LONG
from lightning_mllm.data.text.encoded_sample import EncodedSample
from lightning_mllm.data.text.encoding import Encoder
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample, Segment

FEWER_CLASSES = (
    "Raise max_length, use shorter class names or a checkpoint with a longer context, or let the "
    "prompt list fewer classes (--data.init_args.prompt.listed 20) or none "
    "(--data.init_args.prompt.lists_classes false)."
)

LongAnswers = Literal["raise", "leave_out", "truncate"]


@dataclass(frozen=True)
class Fitted:
    """What is left of a sample.

    Attributes:
        dialogue: The last exchanges of the conversation.
        tokens: The tokens of these exchanges; each run of visual tokens is still one.
        exchanges: How many exchanges before them are left out.
        images: How many images are left out with them.
        excess: How many tokens the last answer is still too long; it is to be cut at its end.
    """

    dialogue: Dialogue
    tokens: EncodedSample
    exchanges: int = 0
    images: int = 0
    excess: int = 0


class Fitter:
    """Makes conversations fit into the context.

    Args:
        encoder: Tokenises for the checkpoint.
        max_length: Most tokens of a sample, those of its images included.
        long_answers: What happens to a sample whose last answer, with images and instruction, does
            not fit even without its question: it is an error, the sample is left out, or the
            answer is cut at its end and so has no end token.
        classes: How many classes the answers are; nothing of such samples is left out.
    """

    def __init__(
        self, encoder: Encoder, max_length: int, long_answers: LongAnswers, classes: int
    ) -> None:
        if long_answers not in ("raise", "leave_out", "truncate"):
            raise ConfigError(
                f"long_answers is {long_answers!r}; it can be 'raise', 'leave_out' or 'truncate'."
            )
        self._encoder, self._max_length = encoder, max_length
        self._long_answers, self._classes = long_answers, classes

    def fit(
        self, dialogue: Dialogue, sample: Sample, images: Sequence[PictureText]
    ) -> Fitted | None:
        """Return as many of the last exchanges as fit, or None where the sample is left out.

        A sample is left out where the question of its last exchange is too long, or where none of
        its images would be left: what is said of an image can't be learnt without it.

        Args:
            dialogue: The conversation that the prompt made of it.
            sample: The sample, for its id and options.
            images: What stands for each image.

        Raises:
            DataError: The last answer does not fit and `long_answers` is `raise`, or it is to be
                cut but has a kind; or the answers are classes.
        """
        exchanges = len(dialogue.turns) // 2
        fitted = self._skip_exchanges(0, dialogue, sample, images)
        if fitted.excess > 0 and exchanges > 1:
            # the fewest exchanges to leave out, by bisection
            low, high = 1, exchanges - 1
            while low < high:
                middle = (low + high) // 2
                if self._skip_exchanges(middle, dialogue, sample, images).excess <= 0:
                    high = middle
                else:
                    low = middle + 1
            fitted = self._skip_exchanges(low, dialogue, sample, images)
        if fitted.excess > 0:
            return self._resolve_excess(fitted, sample)
        if images and fitted.images == len(images):
            return None
        return replace(fitted, excess=0)

    def _skip_exchanges(
        self, first: int, dialogue: Dialogue, sample: Sample, images: Sequence[PictureText]
    ) -> Fitted:
        """Return a conversation from an exchange on; its excess is negative where there is room."""
        skipped = sum(turn.images for turn in dialogue.turns[: 2 * first])
        rest = replace(dialogue, turns=dialogue.turns[2 * first :])
        left = images[skipped:]
        tokens = self._encoder.encode(rest, sample.id, left, sample.options)
        expanded = sum(image.features - len(image.runs) for image in left)
        return Fitted(rest, tokens, first, skipped, len(tokens) + expanded - self._max_length)

    def _resolve_excess(self, fitted: Fitted, sample: Sample) -> Fitted | None:
        """Return what becomes of a last exchange that is too long: None, or it with an excess."""
        excess, masks = fitted.excess, fitted.tokens.masks
        question = int(masks[Segment.QUESTION].sum())
        answer = int(masks[Segment.ANSWER].sum())
        if self._classes:
            raise DataError(
                f"The question of sample {sample.id!r}, which lists {self._classes} classes, does "
                f"not fit into max_length {self._max_length} with its images and answer: they have "
                f"{self._max_length + excess} tokens. {FEWER_CLASSES}",
                TOO_LONG,
            )
        if question >= excess or self._long_answers == "leave_out":
            return None
        can_truncate = sample.kind is None and answer > excess
        if self._long_answers == "truncate" and can_truncate:
            has_lost_all_images = 0 < fitted.images == len(sample.images)
            return None if has_lost_all_images else fitted
        options = "leave_out or truncate" if can_truncate else "leave_out"
        raise DataError(
            f"Sample {sample.id!r} has {self._max_length + excess} tokens ({question} of its last "
            f"question, {answer} of its last answer, the rest of images, instruction and system "
            f"text), but max_length is {self._max_length}, and its last answer does not fit. "
            f"Raise max_length, shorten the answer, or set `long_answers` to {options}.",
            TOO_LONG,
        )
