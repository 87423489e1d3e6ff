"""One look at each sample of a split: what `setup` checks, and what the loaders need to know."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_mllm.data.collator import Collator
from lightning_mllm.data.images import Size
from lightning_mllm.data.labels import as_answered
from lightning_mllm.data.lazy import Part
from lightning_mllm.data.left_out import LeftOut
from lightning_mllm.data.regions import check_boxes
from lightning_mllm.data.sampling import SampleSize
from lightning_mllm.data.splits import Split
from lightning_mllm.data.template_use import TemplateUse
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

_TRIED = 3  # samples of a split that are written out: bytes are no exact measure of tokens
_SHOWN = 20  # ids that one message lists

logger = logging.getLogger(__name__)


class Survey:
    """What is found by going through a split once; its samples may be made as they are asked for, which takes time.

    Args:
        samples: Of the split, labels normalised.
        split: Its name.
        collator: Its collator.
        labelled: Whether the first training sample has a label.

    Attributes:
        samples: As given.
        sizes: Of each of them.
        left_out: What does not fit.
        kinds: Kinds of questions; empty for the training split, which is not scored.
        paths: Image files.

    Raises:
        DataError: An id occurs twice, a text holds a special token, turns are none that the prompt takes, or a sample
            has a kind, label, options or boxes that it can't have.
    """

    def __init__(self, samples: Sequence[Sample], split: Split, collator: Collator, *, labelled: bool) -> None:
        self.sizes: list[SampleSize] = []
        self.kinds: set[str] = set()
        self.paths: set[Path] = set()
        self.samples, self.left_out = samples, LeftOut()
        self._split, self._collator, self._labelled = split, collator, labelled
        self._template_use = TemplateUse(collator)
        self._images: list[tuple[Path | Size, ...]] = []
        self._bytes: list[tuple[int, int]] = []  # that can't be cut, and that can
        self._boxed: list[int] = []
        self._refused: set[int] = set()  # they don't fit
        self._seen: set[str] = set()
        for sample in samples:
            self._look_at(sample)
        self._seen.clear()

    def _look_at(self, sample: Sample) -> None:
        if sample.id in self._seen:
            raise DataError(f"The id {sample.id!r} occurs twice in the {self._split!r} split; ids must be unique.")
        self._seen.add(sample.id)
        if sample.label is not None and not self._labelled:
            raise DataError(
                f"Sample {sample.id!r} of the {self._split!r} split has a label, but the first training sample has "
                "none. Give every sample a label, or none."
            )
        labelled = bool(self._collator.label_names)
        if self._split != "train" and sample.kind is not None:
            self.kinds.add(_checked_kind(sample, sample.kind, self._split, labelled))
        self._bytes.append(self._texts(sample))
        check_boxes(sample)
        if sample.boxes:
            self._boxed.append(len(self._images))
        images = tuple(image if isinstance(image, Path) else image.size for image in sample.images)
        self._images.append(images)
        self.paths.update(image for image in images if isinstance(image, Path))
        self.sizes.append(SampleSize(sample.id, len(images), 0 if sample.label is not None else _characters(sample)))

    def _texts(self, sample: Sample) -> tuple[int, int]:
        """Return the bytes of texts that can't be cut, and of those that can; class names are checked once."""
        if self._collator.label_names:
            return len((sample.label or "").encode()), 0
        fixed, question = len((sample.system or "").encode()), 0
        turns = self._collator.check_turns(sample)
        self._template_use.look_at(len(self._bytes), sample, turns)
        for turn in turns:
            text, instruction = len(turn.text.encode()), len(turn.instruction.encode())
            fixed += instruction + (text if turn.role == "assistant" else 0)
            question += text if turn.role == "user" else 0
        return fixed, question

    def try_the_longest(self, sizes: Mapping[Path, Size]) -> None:
        """Write out the samples that need most room: errors of template, spans and length show here.

        Args:
            sizes: Of the image files.

        Raises:
            DataError: A sample can't be written out, or does not fit.
        """
        needs = []
        for index, (images, (fixed, question)) in enumerate(zip(self._images, self._bytes, strict=True)):
            counts = [self._collator.count_image_tokens(_size(image, sizes)) for image in images]
            needs.append((sum(counts) + fixed, sum(counts) + fixed + question, index))
            if needs[-1][1] > self._collator.max_length and not self._collator.label_names:
                fitted = self._collator.fit(self.samples[index], counts)
                self.left_out.count(fitted)
                if fitted is None:
                    self._refused.add(needs.pop()[2])
        self.left_out.warn(self._split, len(self.samples), self._collator.max_length)
        if not needs:
            raise DataError(
                f"No sample of the {self._split!r} split fits into max_length {self._collator.max_length}. Raise it, "
                "or shorten the texts."
            )
        if self._refused:
            self.kinds &= {sample.kind for sample in self.kept()[0] if sample.kind}
        self._template_use.check(self.samples, self._split)
        most = {index for *_, index in heapq.nlargest(_TRIED, needs)}
        most.add(max(needs, key=lambda need: need[1])[2])
        for index in sorted(most):
            self._collator.check(self.samples[index])

    def kept(self) -> tuple[Sequence[Sample], list[SampleSize]]:
        """Return the samples that fit, and their sizes."""
        if not self._refused:
            return self.samples, self.sizes
        indices = [index for index in range(len(self.samples)) if index not in self._refused]
        return Part(self.samples, indices), [self.sizes[index] for index in indices]

    def look_at_boxes(self, sizes: Mapping[Path, Size]) -> None:
        """Warn of samples of whose boxes nothing is to be seen; an analysis leaves them out.

        Args:
            sizes: Of the image files.

        Raises:
            DataError: Which patches show a box can't be told for this family.
        """
        unseen = []
        for index in self._boxed:
            (image,), sample = self._images[index], self.samples[index]
            if not self._collator.shows_a_box(sample, _size(image, sizes)):
                unseen.append(sample.id)
        if unseen:
            logger.warning(
                "No patch shows the boxes of %d of the %d samples with boxes in the %r split: %s%s. They are outside "
                "the picture, or where it is cropped away.",
                len(unseen),
                len(self._boxed),
                self._split,
                ", ".join(unseen[:_SHOWN]),
                ", ..." if len(unseen) > _SHOWN else "",
            )


def _checked_kind(sample: Sample, kind: str, split: Split, labelled: bool) -> str:
    """Return a sample's kind; refuse one that can't be scored by exact match."""
    where = f"Sample {sample.id!r} of the {split!r} split has the kind {kind!r}"
    if labelled:
        raise DataError(
            f"{where}, but is scored by its label; kinds are for free-form answers. Give it no kind, or evaluate "
            "with a prompt that does not ask for the label."
        )
    if not kind.strip():
        raise DataError(f"{where}, which is no name. Give it one, or None if its answer is not to be scored.")
    if not sample.conversation or not as_answered(sample.conversation[-1].text):
        raise DataError(
            f"{where}, so its last answer is scored by exact match, but nothing is left of it once quotes, full "
            "stops and blanks are removed. Correct the answer, or give the sample no kind."
        )
    return kind


def _size(image: Path | Size, sizes: Mapping[Path, Size]) -> Size:
    return sizes[image] if isinstance(image, Path) else image


def _characters(sample: Sample) -> int:
    return sum(len(turn.text) + len(turn.instruction) for turn in sample.conversation)
