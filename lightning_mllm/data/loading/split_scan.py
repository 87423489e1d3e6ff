"""One look at each sample of a split: what `setup` checks, and what the loaders need to know."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mllm.data.images.files import Size
from lightning_mllm.data.images.regions import check_boxes
from lightning_mllm.data.loading.bad_rows import TOO_LONG, BadRows
from lightning_mllm.data.loading.checks import check_sample
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.lazy import LazySamples, SampleSubset
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.data.loading.sample_errors import fetch_sample
from lightning_mllm.data.loading.sampler import SampleSize
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.loading.template_check import TemplateCheck
from lightning_mllm.data.text.labels import as_answered
from lightning_mllm.data.text.prompts import ClassificationPrompt, PlainPrompt
from lightning_mllm.data.text.turns import images_first, pieces
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample, Turn

_SHOWN = 20  # ids that one message lists
_LABEL_ALONE = (ClassificationPrompt, PlainPrompt)  # whose text depends on the label and the number of images alone

Trait = tuple[object, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What is known of a sample that is not opened.

    Attributes:
        size: For the loaders.
        images: Files, and the sizes of other pictures.
        kind: Of question.
        bound: Most tokens that its text can have; None if that is not known.
        trait: Samples that share one have texts of as many tokens, but for the order of class names.
        odd: Whether it is the first in how one of its texts begins or ends: a token could span that border.
    """

    size: SampleSize
    images: tuple[Path | Size, ...]
    kind: str | None
    bound: int | None
    trait: Trait
    odd: bool


class SplitScan:
    """What is found by going through a split once; its samples may be made as they are asked for, which takes time.

    Args:
        samples: Of the split, labels normalised.
        split: Its name.
        collator: Its collator.
        bad_rows: Gathers samples that can't be used: an id occurs twice, a text holds a special token, turns are none
            that the prompt takes, or a sample has a kind, label, options or boxes that it can't have.
        labelled: Whether the first training sample has a label.

    Attributes:
        samples: As given.
        split: As given.
        collator: As given.
        facts: Index -> what is known of a sample; those that can't be used, or do not fit, are not there.
        refused: Index -> what is wrong with samples that were refused since.
        too_long: Indices of samples that do not fit, which is no fault of theirs.
        left_out: What does not fit, in numbers.
        paths: Image files.
    """

    def __init__(
        self, samples: Sequence[Sample], split: Split, collator: Collator, bad_rows: BadRows, *, labelled: bool
    ) -> None:
        self.samples, self.split, self.collator = samples, split, collator
        self.facts: dict[int, SampleFacts] = {}
        self.refused: dict[int, DataError] = {}
        self.too_long: list[int] = []
        self.left_out, self._template_check = LeftOut(), TemplateCheck(collator)
        self.paths: set[Path] = set()
        self._bad, self._labelled = bad_rows, labelled
        self._by_label = bool(collator.label_names) and isinstance(collator.prompt, _LABEL_ALONE)
        self._boxed: list[int] = []
        self._bounds: dict[Trait, int | None] = {}
        self._seen: set[str] = set()
        self._borders: set[Trait] = set()
        self._bad.split = split
        for index in range(len(samples)):
            self._look_at(index)
        self._seen.clear()

    def refuse(self, index: int, error: DataError) -> None:
        """Note that a sample can't be used, though there was nothing to be seen of it at the first look."""
        self._bad.split = self.split
        self._bad.add(error)
        self.facts.pop(index, None)
        self.refused[index] = error

    def leave_out(self, index: int) -> None:
        """Leave out a sample that does not fit."""
        del self.facts[index]
        self.too_long.append(index)

    def warn(self) -> None:
        """Warn of what does not fit, and of what the chat template does not do for these samples.

        Raises:
            CheckpointError: The template alters a text.
        """
        self.left_out.warn(self.split, len(self.samples), self.collator.max_length)
        self._template_check.check(self.samples, self.split)

    def explain_empty(self) -> DataError:
        """Return what to say where no sample is left."""
        if not self.too_long:
            return DataError(f"No row of the {self.split!r} split can be used. {self._bad.text()}")
        return DataError(
            f"No sample of the {self.split!r} split fits into max_length {self.collator.max_length}. Raise it, or "
            "shorten the texts.",
            TOO_LONG,
        )

    @property
    def kinds(self) -> set[str]:
        """Kinds of questions; empty for the training split, which is not scored."""
        return {facts.kind for facts in self.facts.values() if facts.kind} if self.split != "train" else set()

    def select_kept(self) -> tuple[Sequence[Sample], list[SampleSize]]:
        """Return the samples that can be used and fit, and their sizes."""
        sizes = [facts.size for facts in self.facts.values()]
        if len(sizes) == len(self.samples):
            return self.samples, sizes
        part = SampleSubset(self.samples, list(self.facts))
        return part if isinstance(self.samples, LazySamples) else list(part), sizes

    def _look_at(self, index: int) -> None:
        known = self._bad.noted
        with self._bad.catch():
            sample = fetch_sample(self.samples, index)
            check_sample(sample, self.split)
            for check in (self._check_id, self._check_label, self._check_kind, check_boxes):
                with self._bad.catch():
                    check(sample)
            bound, trait, odd = self._read(index, sample)
            images = tuple(image if isinstance(image, Path) else image.size for image in sample.images)
            if self._bad.noted == known:
                self._take(index, sample, images, (bound, trait, odd))
        self._bad.count_once(known)

    def _take(
        self, index: int, sample: Sample, images: tuple[Path | Size, ...], read: tuple[int | None, Trait, bool]
    ) -> None:
        size = SampleSize(sample.id, len(images), 0 if sample.label is not None else _characters(sample))
        self.facts[index] = SampleFacts(size, images, sample.kind, *read)
        self.paths.update(image for image in images if isinstance(image, Path))
        if sample.boxes:
            self._boxed.append(index)

    def _check_id(self, sample: Sample) -> None:
        if sample.id in self._seen:
            raise DataError(f"The id {sample.id!r} occurs twice in the {self.split!r} split; ids must be unique.", "id")
        self._seen.add(sample.id)

    def _check_label(self, sample: Sample) -> None:
        if sample.label is not None and not self._labelled:
            raise DataError(
                f"Sample {sample.id!r} of the {self.split!r} split has a label, but the first training sample has "
                "none. Give every sample a label, or none.",
                "label",
            )

    def _check_kind(self, sample: Sample) -> None:
        if self.split != "train" and sample.kind is not None:
            _refuse_kind(sample, sample.kind, self.split, bool(self.collator.label_names))

    def _read(self, index: int, sample: Sample) -> tuple[int | None, Trait, bool]:
        """Return the bound of a sample's text, its trait and whether it is odd; texts are looked at on the way."""
        if self._by_label:  # class names were checked once
            trait: Trait = (sample.label, len(sample.images))
            odd = trait not in self._bounds
            if odd:
                self._bounds[trait] = self.collator.bound_text(sample)
            return self._bounds[trait], trait, odd
        turns = self.collator.check_turns(sample)
        self._template_check.look_at(index, sample, turns)
        new = set(_borders(turns, sample.system or "")) - self._borders
        self._borders |= new
        return self.collator.bound_text(sample), (sample.id,), bool(new)

    def warn_of_unseen_boxes(self, sizes: Mapping[Path, Size]) -> None:
        """Warn of samples of whose boxes nothing is to be seen; an analysis leaves them out.

        Args:
            sizes: Of the image files.

        Raises:
            DataError: Which patches show a box can't be told for this family.
        """
        unseen = []
        boxed = [index for index in self._boxed if index in self.facts]
        for index in boxed:
            (image,), sample = self.facts[index].images, self.samples[index]
            if not self.collator.shows_a_box(sample, sizes[image] if isinstance(image, Path) else image):
                unseen.append(sample.id)
        if unseen:
            logger.warning(
                "No patch shows the boxes of %d of the %d samples with boxes in the %r split: %s%s. They are outside "
                "the picture, or where it is cropped away.",
                len(unseen),
                len(boxed),
                self.split,
                ", ".join(unseen[:_SHOWN]),
                ", ..." if len(unseen) > _SHOWN else "",
            )


def _refuse_kind(sample: Sample, kind: str, split: Split, labelled: bool) -> None:
    """Refuse a kind that can't be scored by exact match."""
    where = f"Sample {sample.id!r} of the {split!r} split has the kind {kind!r}"
    if labelled:
        raise DataError(
            f"{where}, but is scored by its label; kinds are for free-form answers. Give it no kind, or evaluate "
            "with a prompt that does not ask for the label.",
            "kind",
        )
    if not kind.strip():
        raise DataError(f"{where}, which is no name. Give it one, or None if its answer is not to be scored.", "kind")
    if not sample.conversation or not as_answered(sample.conversation[-1].text):
        raise DataError(
            f"{where}, so its last answer is scored by exact match, but nothing is left of it once quotes, full "
            "stops and blanks are removed. Correct the answer, or give the sample no kind.",
            "kind",
        )


def _borders(turns: Sequence[Turn], system: str) -> Iterator[Trait]:
    """Return how texts begin and end: the outer two characters, or what kind of letter or digit they are."""
    texts = [("system", system), *((turn.role, turn.instruction) for turn in turns)]
    for turn in turns:
        written = [*pieces(turn), images_first(turn).text] if turn.places else [turn.text]
        texts += [(turn.role, text) for text in written]
    for role, text in texts:
        for end, two in (("first", text[:2]), ("last", text[:-3:-1])):
            yield role, end, *(unicodedata.category(char) if char.isalnum() else char for char in two)


def _characters(sample: Sample) -> int:
    return sum(len(turn.text) + len(turn.instruction) for turn in sample.conversation)
