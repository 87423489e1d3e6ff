"""One look at each sample of a split: what `setup` checks, and what the loaders need to know."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from lightning_mllm.data.images.regions import check_region_boxes, region_leaves_picture
from lightning_mllm.data.loading.bad_rows import TOO_LONG, BadRows
from lightning_mllm.data.loading.collator import Collator
from lightning_mllm.data.loading.duplicates import PictureCollector
from lightning_mllm.data.loading.lazy import LazySamples, LazySubset
from lightning_mllm.data.loading.left_out import LeftOut
from lightning_mllm.data.loading.picture_sizes import PictureSizes
from lightning_mllm.data.loading.sample_checks import check_sample
from lightning_mllm.data.loading.sample_errors import fetch_sample, join_first
from lightning_mllm.data.loading.sample_sizes import SampleSizes
from lightning_mllm.data.loading.scanned import ScannedSample, ScannedSamples, Trait
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.loading.stored import StoredSamples
from lightning_mllm.data.loading.template_check import TemplateCheck
from lightning_mllm.data.text.labels import fold_label
from lightning_mllm.data.text.prompts import ClassificationPrompt, PlainPrompt
from lightning_mllm.data.text.turns import cut_turn_at_images, put_images_first_in_turn
from lightning_mllm.errors import DataError
from lightning_mllm.progress import track
from lightning_mllm.types import Sample, Turn

_SHOWN = 20  # ids that one message lists
# prompts whose text depends on the label and the number of images alone
_LABEL_ALONE = (ClassificationPrompt, PlainPrompt)

logger = logging.getLogger(__name__)


class SplitScan:
    """What is found by looking at each sample of a split once.

    Samples may be made when they are asked for, which takes time: hence one look for all checks.

    Args:
        samples: The samples of the split, labels normalised.
        split: The name of the split.
        collator: Makes the batches of the split.
        bad_rows: Collects samples that can't be used: an id occurs twice, a text has a special
            token in it, the prompt does not take the turns, or a sample has a kind, label, options
            or boxes that it can't have.
        labelled: Whether the first training sample has a label.

    Attributes:
        samples: The samples, as given.
        split: The name, as given.
        collator: The collator, as given.
        facts: What is known of samples; those that can't be used, or do not fit, are not in it.
        refused: Index -> what is wrong with a sample that was refused after the scan.
        too_long: Indices of samples that do not fit, which are not bad rows.
        left_out: Counts of what does not fit.
        pictures: What the samples show.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        split: Split,
        collator: Collator,
        bad_rows: BadRows,
        *,
        labelled: bool,
    ) -> None:
        self.samples, self.split = samples, split
        self.collator = collator
        self.facts = ScannedSamples()
        self.refused: dict[int, DataError] = {}
        self.too_long: list[int] = []
        self.left_out, self._template_check = LeftOut(), TemplateCheck(collator)
        self._bad, self._labelled = bad_rows, labelled
        prompt_takes_label = (
            isinstance(collator.prompt, _LABEL_ALONE)
            and getattr(collator.prompt, "listed", None) is None
        )
        self._by_label = bool(collator.label_names) and prompt_takes_label
        self._ids_are_unique = isinstance(samples, StoredSamples) and samples.ids_are_unique
        self._boxed: list[int] = []
        self._bounds: dict[Trait, int | None] = {}
        self._seen: set[str] = set()
        self._borders: set[Trait] = set()
        self._bad.split = split
        pictures = PictureCollector()
        for index in track(range(len(samples)), f"Samples of {split}"):
            sample, facts = self._look_at(index)
            self.facts.append(facts)
            pictures.add(sample if facts else None)
        self.pictures = pictures.build()
        self._seen.clear()

    def refuse(self, index: int, error: DataError) -> None:
        """Note that a sample can't be used, which the scan could not see."""
        self._bad.split = self.split
        self._bad.add(error)
        self.facts.drop(index)
        self.refused[index] = error

    def leave_out(self, index: int) -> None:
        """Leave out a sample that does not fit."""
        self.facts.drop(index)
        self.too_long.append(index)

    def warn(self) -> None:
        """Warn of what does not fit, and of what the chat template does to these samples.

        Raises:
            CheckpointError: The template alters a text.
        """
        self.left_out.warn(self.split, len(self.samples), self.collator.max_length)
        self._template_check.check(self.samples, self.split)

    def explain_empty(self) -> DataError:
        """Return the error to raise where no sample is left."""
        if not self.too_long:
            problem = f"No row of the {self.split!r} split can be used. {self._bad.text()}"
            return DataError(problem)
        return DataError(
            f"No sample of the {self.split!r} split fits into max_length "
            f"{self.collator.max_length}. Raise it, or shorten the texts.",
            TOO_LONG,
        )

    @property
    def kinds(self) -> set[str]:
        """Kinds of questions; empty for the training split, which is not scored."""
        if self.split == "train":
            return set()
        return {kind for kind in self.facts.kinds if kind}

    def select_kept(self) -> tuple[Sequence[Sample], SampleSizes]:
        """Return the samples that can be used and fit, and their sizes."""
        kept, sizes = self.facts.indices(), self.facts.sizes()
        if len(kept) == len(self.samples):
            return self.samples, sizes
        if isinstance(self.samples, StoredSamples):
            return self.samples.select(kept), sizes
        subset = LazySubset(self.samples, kept.tolist())
        return subset if isinstance(self.samples, LazySamples) else list(subset), sizes

    def warn_of_unseen_boxes(self, sizes: PictureSizes) -> None:
        """Warn of samples of whose boxes no patch shows anything; an analysis leaves them out.

        Args:
            sizes: The sizes of the pictures.

        Raises:
            DataError: It is not known which patches show what for this family.
        """
        unseen, outside = [], []
        boxed = [index for index in self._boxed if index in self.facts]
        for index in boxed:
            sample = self.samples[index]
            (size,) = sizes.of_sample(index)
            if not self.collator.shows_a_box(sample, size):
                unseen.append(sample.id)
            elif region_leaves_picture((*sample.boxes, *sample.distractors), size):
                outside.append(sample.id)
        if outside:
            logger.warning(
                "Boxes of %d samples of the %r split reach far out of their pictures: %s. Are they "
                "in pixels of the stored picture?",
                len(outside),
                self.split,
                join_first(outside, _SHOWN),
            )
        if unseen:
            logger.warning(
                "No patch shows the boxes of %d of the %d samples with boxes in the %r split: %s. "
                "They are outside the picture, or where it is cropped away.",
                len(unseen),
                len(boxed),
                self.split,
                join_first(unseen, _SHOWN),
            )

    def _look_at(self, index: int) -> tuple[Sample | None, ScannedSample | None]:
        """Check a sample, and return it and what is known of it, if nothing is wrong."""
        known = self._bad.noted
        sample = facts = None
        with self._bad.catch():
            sample = fetch_sample(self.samples, index)
            check_sample(sample, self.split)
            for check in (self._check_id, self._check_label, self._check_kind, check_region_boxes):
                with self._bad.catch():
                    check(sample)
            bound, trait, odd = self._look_at_text(index, sample)
            if self._bad.noted == known:
                inner = [image.size for image in sample.images if not isinstance(image, Path)]
                facts = ScannedSample(
                    id=sample.id,
                    images=len(sample.images),
                    inner=tuple(inner),
                    characters=0 if sample.label is not None else _count_characters(sample),
                    kind=sample.kind,
                    bound=bound,
                    trait=trait,
                    odd=odd,
                )
                if sample.boxes:
                    self._boxed.append(index)
        self._bad.count_once(known)
        return sample, facts

    def _check_id(self, sample: Sample) -> None:
        if self._ids_are_unique:
            return
        if sample.id in self._seen:
            raise DataError(
                f"The id {sample.id!r} occurs twice in the {self.split!r} split; ids must be "
                "unique.",
                "id",
            )
        self._seen.add(sample.id)

    def _check_label(self, sample: Sample) -> None:
        if sample.label is not None and not self._labelled:
            raise DataError(
                f"Sample {sample.id!r} of the {self.split!r} split has a label, but the first "
                "training sample has none. Give every sample a label, or none.",
                "label",
            )

    def _check_kind(self, sample: Sample) -> None:
        """Refuse a kind that can't be scored by exact match."""
        if self.split == "train" or sample.kind is None:
            return
        where = f"Sample {sample.id!r} of the {self.split!r} split has the kind {sample.kind!r}"
        if self.collator.label_names:
            raise DataError(
                f"{where}, but is scored by its label; kinds are for free-form answers. Give it no "
                "kind, or evaluate with a prompt that does not ask for the label.",
                "kind",
            )
        if not sample.kind.strip():
            raise DataError(
                f"{where}, which is not a name. Give it one, or None if its answer is not to be "
                "scored.",
                "kind",
            )
        if not sample.conversation or not fold_label(sample.conversation[-1].text):
            raise DataError(
                f"{where}, so its last answer is scored by exact match, but nothing is left of it "
                "once quotes, full stops and blanks are removed. Correct the answer, or give the "
                "sample no kind.",
                "kind",
            )

    def _look_at_text(self, index: int, sample: Sample) -> tuple[int | None, Trait | None, bool]:
        """Check a sample's texts, and return their bound, their trait and whether they are odd."""
        if self._by_label:  # class names were checked once
            trait: Trait = (sample.label, len(sample.images))
            odd = trait not in self._bounds
            if odd:
                self._bounds[trait] = self.collator.bound_text(sample)
            return self._bounds[trait], trait, odd
        turns, bound = self.collator.check_and_bound(sample)
        self._template_check.look_at(index, sample, turns)
        new = set(_list_borders(turns, sample.system or "")) - self._borders
        self._borders |= new
        return bound, None, bool(new)


def _list_borders(turns: Sequence[Turn], system: str) -> Iterator[Trait]:
    """Yield how texts begin and end.

    That is the outer two characters, or what kind of letter or digit they are.
    """
    texts = [("system", system), *((turn.role, turn.instruction) for turn in turns)]
    for turn in turns:
        written = [turn.text]
        if turn.places:
            written = [*cut_turn_at_images(turn), put_images_first_in_turn(turn).text]
        texts += [(turn.role, text) for text in written]
    for role, text in texts:
        yield role, "first", *_classify(text[:2])
        yield role, "last", *_classify(text[:-3:-1])


@lru_cache(maxsize=1 << 16)
def _classify(characters: str) -> tuple[str, ...]:
    """Return the Unicode categories of letters and digits, and other characters themselves."""
    return tuple(
        unicodedata.category(character) if character.isalnum() else character
        for character in characters
    )


def _count_characters(sample: Sample) -> int:
    return sum(len(turn.text) + len(turn.instruction) for turn in sample.conversation)
